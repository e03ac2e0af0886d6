"""Fetch, verify, preflight, activate, prove or return."""
