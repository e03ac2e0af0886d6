"""The MQTT broker the hub runs as a child."""
