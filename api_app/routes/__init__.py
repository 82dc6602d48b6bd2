"""The routes, one file for each room of the API."""
