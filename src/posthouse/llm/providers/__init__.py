"""One file per model provider; each vendor SDK lives in its own."""
