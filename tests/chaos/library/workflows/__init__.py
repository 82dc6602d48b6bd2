"""The workflows of the harness."""
