"""Mergeable sketches of data: merging two equals sketching both."""
