"""The agent's SQLite: migrations and one writer thread."""
