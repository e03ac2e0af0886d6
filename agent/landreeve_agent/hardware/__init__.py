"""What is in this box and what really works."""
