"""posthouse: run agent workflows durably on a fleet of workers."""

__version__ = "0.1.0"
