"""Encryption at rest: keys, sealed blobs, sealed lines."""
