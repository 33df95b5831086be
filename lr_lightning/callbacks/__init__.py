"""Lightning callbacks: thin, each only gathers numbers or applies a pure result."""
