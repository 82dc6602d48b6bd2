"""Budgets: limits of a tree of runs, what is reserved and what is spent."""
