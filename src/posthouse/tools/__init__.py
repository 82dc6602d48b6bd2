"""Tools that agents call: definitions, toolsets, search, pages."""
