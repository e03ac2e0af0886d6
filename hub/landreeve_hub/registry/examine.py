"""Whether a release may enter the registry: its manifest, its files, and each graph judged away from the hub."""

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
from landreeve.release.manifest import BadReleaseError, Manifest, ReleaseConfig, Signature
from landreeve.release.vet import Read, vet
from landreeve_models.definition import BadDefinitionError, parse_definition

DEADLINE_S = 120.0
DEFINITION_FILE = "definition.json"


@dataclass(frozen=True, slots=True)
class Examined:
    """A release fit for the registry."""

    digest: str
    manifest_bytes: bytes
    manifest: Manifest
    config: ReleaseConfig
    definition: dict[str, Any]


async def examine(manifest_bytes: bytes, read: Read) -> Examined:
    """Check everything that can be checked without running the model.

    ``read`` gives a blob by its sha256. `BadReleaseError` says what is wrong, where, and what is accepted.
    """
    examined = await asyncio.to_thread(_read_parts, manifest_bytes, read)
    for layer in examined.manifest.layers:
        if layer.path.endswith(".onnx"):
            await _judge_graph(read(layer.sha256), examined.config.signature, layer.path)
    return examined


def _read_parts(manifest_bytes: bytes, read: Read) -> Examined:
    found = vet(manifest_bytes, read)
    layer = found.manifest.layer(DEFINITION_FILE)
    definition = {} if layer is None else _definition(read(layer.sha256), found.config.signature)
    return Examined(found.digest, manifest_bytes, found.manifest, found.config, definition)


def _definition(data: bytes, signature: Signature) -> dict[str, Any]:
    """The definition; that of a tensor model must say of the graph's ends what the config says."""
    try:
        definition = msgspec.json.decode(data, type=dict[str, Any])
        if (signature.tensors or definition.get("tensors")) and parse_definition(data).signature() != signature:
            raise BadReleaseError(
                f"{DEFINITION_FILE}: its tensors are not those of the release's config; pack the release again"
            )
    except (msgspec.DecodeError, UnicodeDecodeError, BadDefinitionError) as error:
        raise BadReleaseError(f"{DEFINITION_FILE}: {error}") from error
    return definition


async def _judge_graph(graph: bytes, signature: Signature, path: str) -> None:
    pipe = asyncio.subprocess.PIPE
    # Columns say nothing about the graph's ends, and thousands of them are no argument for a command line.
    ends = msgspec.json.encode(msgspec.structs.replace(signature, inputs=())).decode()
    arguments = [sys.executable, "-m", "landreeve_hub.registry.inspect", ends]
    process = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(DEADLINE_S):
            said, complaints = await process.communicate(graph)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BadReleaseError(f"{path}: could not be judged within {DEADLINE_S:.0f} s; it is refused") from None
    if process.returncode == 1 and said:
        raise BadReleaseError(said.decode(errors="replace").replace("model.onnx", path, 1))
    if process.returncode != 0:
        last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
        raise BadReleaseError(f"{path}: judging it ended with code {process.returncode} ({last[:200]}); it is refused")
