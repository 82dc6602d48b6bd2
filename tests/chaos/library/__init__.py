"""What the harness runs: a library as a user of posthouse would write it."""
