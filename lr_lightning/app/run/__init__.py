"""One run, from a checked config to its recorded result."""
