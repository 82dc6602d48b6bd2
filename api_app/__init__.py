"""The HTTP front end: validates, writes Redis state, enqueues, pushes events."""
