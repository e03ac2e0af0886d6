"""ONNX and safetensors files made by hand: the smallest that a release may hold, with any payload."""

import json


def varint(value: int) -> bytes:
    """The value as protobuf writes it."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def graph_of(payload: bytes = b"", *, nodes: bytes = b"", domain: bytes = b"", rest: bytes = b"") -> bytes:
    """A model of one Identity from ``x`` to ``p``, the payload its description; ``nodes`` are further fields of the
    graph, ``rest`` of the model."""
    node = field(1, b"x") + field(2, b"p") + field(4, b"Identity") + (field(7, domain) if domain else b"")
    opset = field(1, b"") + field(2, 18)
    return field(1, 8) + field(6, payload) + field(7, field(1, node) + nodes) + field(8, opset) + rest


def tensors_of(payload: bytes, name: str = "x", **more: object) -> bytes:
    """A safetensors file of one tensor of bytes; ``more`` replaces members of its entry."""
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]} | more
    header = json.dumps({name: entry}).encode()
    return len(header).to_bytes(8, "little") + header + payload
