"""What the API may do to runs."""
