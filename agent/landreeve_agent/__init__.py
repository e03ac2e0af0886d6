"""The on-site service: supervisor, worker, trainer."""
