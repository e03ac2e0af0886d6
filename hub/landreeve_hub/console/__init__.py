"""The fleet console."""
