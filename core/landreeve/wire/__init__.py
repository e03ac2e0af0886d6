"""The MQTT contract, typed both ways."""
