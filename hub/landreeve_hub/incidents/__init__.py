"""Incidents with their cause in plain words."""
