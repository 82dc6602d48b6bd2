"""The road between API and worker: arq entries, the wake-up and the worker process."""
