"""What a finder needs besides Lightning's hooks: undoable steps, the curve's reading, short runs, the race, results."""
