"""Redis: the connection, every key, and one script per transition."""
