"""The library `perils` as it is after the next deploy."""
