"""The commands of `scripts/`, one file each."""
