"""Its workflows."""
