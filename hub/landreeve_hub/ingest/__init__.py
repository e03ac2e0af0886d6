"""Bytes to accepted facts, or a rejection with its reason."""
