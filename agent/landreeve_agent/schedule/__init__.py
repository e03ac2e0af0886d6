"""Scheduled work of the agent."""
