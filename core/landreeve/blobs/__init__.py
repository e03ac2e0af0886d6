"""Content-addressed store, fixed-size blocks, resume."""
