"""Tamper-evident record of who did what."""
