"""Workflow definitions and the context that their code sees."""
