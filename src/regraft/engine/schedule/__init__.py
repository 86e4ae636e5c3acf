"""Which request runs when, and what memory it gets: plain Python, no arrays."""
