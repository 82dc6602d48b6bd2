"""What a worker does with a claimed run."""
