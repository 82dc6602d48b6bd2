"""The chaos harness: the whole service as real processes, hurt on purpose, and its records checked."""
