"""Devices: inventory, health, enrolment, certificates."""
