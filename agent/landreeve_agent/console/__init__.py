"""The local web console and API."""
