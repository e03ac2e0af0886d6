"""The gRPC messages of the Open Inference Protocol (`protocol/open_inference.proto`), made from its descriptor.

From a pool of their own, not from generated modules: those put their names into the one pool of a process, where a
client's copy of the same published names would clash with ours.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
DESCRIPTOR = Path(__file__).with_name("protocol") / "open_inference.binpb"


def _load() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
        for file in files.file
        for message in file.message_type
    }


MESSAGES = _load()
"""Each top-level message's class by name."""
