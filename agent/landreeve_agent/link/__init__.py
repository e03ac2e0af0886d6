"""The MQTT session and the outbox behind it."""
