"""What happened in a run: the vocabulary, the log, and the hub that pushes it to readers."""
