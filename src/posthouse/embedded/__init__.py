"""One command on one machine: Valkey, stand-in model, API and workers under a supervisor."""
