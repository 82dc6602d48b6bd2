"""Questions to people: what is asked, what may be answered, where they are kept."""
