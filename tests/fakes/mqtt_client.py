"""How a test's own MQTT client ends."""

import paho.mqtt.client as paho


def part(client: paho.Client) -> None:
    """Says goodbye, and unties the ring of client and callbacks: its sockets would stay open until some collection,
    and the warning about them would fall on whichever test runs then, or on the end of the run."""
    client.disconnect()
    client.loop_stop()
    client.on_connect = client.on_disconnect = client.on_message = client.on_subscribe = None
