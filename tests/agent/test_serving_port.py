"""The serving port is one box's alone, from before its first model on."""

from landreeve_agent.inference import hold_port


def test_port_held_by_another_box_is_not_shared() -> None:
    first = hold_port("127.0.0.1", 0)
    port = first.address[1]
    second = hold_port("127.0.0.1", port)
    assert second.address[1] != port
    first.close()
    again = hold_port("127.0.0.1", port)
    assert again.address[1] == port
    second.close()
    again.close()
