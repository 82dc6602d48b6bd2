"""A library for tests on the road: workflows that are in peril, or are one."""
