"""Measurements: each script writes result files under ``results/``; nothing in ``regraft`` imports them."""
