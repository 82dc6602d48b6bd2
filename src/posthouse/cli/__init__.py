"""The posthouse command."""
