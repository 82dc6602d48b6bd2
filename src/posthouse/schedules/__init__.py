"""Schedules: when runs are due by the calendar, and that each slot makes one run."""
