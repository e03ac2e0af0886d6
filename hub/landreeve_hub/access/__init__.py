"""People: roles, sessions, tokens."""
