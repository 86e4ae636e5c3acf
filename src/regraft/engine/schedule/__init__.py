"""Scheduling: the order of requests, and the memory of each. Plain Python, no arrays."""
