"""Models: messages, the provider seam, retries."""
