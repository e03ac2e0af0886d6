"""What each device should run: generation n, signed, retained."""
