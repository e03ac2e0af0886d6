"""Releases, datasets, runs, aliases, blobs."""
