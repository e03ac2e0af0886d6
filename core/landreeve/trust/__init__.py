"""Which signed metadata and certificates to believe."""
