"""What to offer whom next, and why to wait."""
