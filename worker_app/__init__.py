"""The worker process: claims runs and carries them on."""
