"""Search engines, one a file, each with the name of its file."""
