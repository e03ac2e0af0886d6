"""Starts the agent from one of two environments and goes back by itself when a new one does not prove itself."""
