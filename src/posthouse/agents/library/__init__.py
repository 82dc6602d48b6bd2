"""One agent a file, with its prompt beside it."""
