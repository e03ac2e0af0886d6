"""The hub's tables and migrations."""
