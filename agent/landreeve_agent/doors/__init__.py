"""Other ways into inference than HTTP, each in a child process of its own: batch files and MQTT."""
