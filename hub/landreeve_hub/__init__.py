"""The fleet's central service."""
