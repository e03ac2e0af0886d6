"""Training jobs and the trainer process."""
