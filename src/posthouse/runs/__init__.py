"""The run record, its statuses and its transitions."""
