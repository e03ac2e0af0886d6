"""Releases from and to registries of others, by the OCI distribution specification 1.1."""

import hashlib
import re
import time
from collections.abc import Callable
from urllib.parse import quote, urlsplit

import httpx2
from landreeve.release.layout import Packed
from landreeve.release.manifest import (
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    BadReleaseError,
    Descriptor,
    digest_of,
)
from landreeve.release.reference import Reference

from landreeve_hub.errors import RegistryAwayError, RegistryError
from landreeve_hub.exchange.doorway import Doorway, read_limited
from landreeve_hub.exchange.foreign import adopt
from landreeve_hub.exchange.outline import outline

CHUNK_BYTES = 8 * 1024 * 1024
ATTEMPTS = 5
Sleep = Callable[[float], None]


def pull_release(door: Doorway, reference: Reference, sleep: Sleep = time.sleep) -> Packed:
    """The release of a reference, every byte checked against its digest.

    `BadReleaseError` when it must not be used, `RegistryError` and its kinds when it cannot be had.
    """
    manifest_bytes = fetch_manifest(door, reference)
    sizes = {blob.sha256: blob for blob in outline(manifest_bytes)}

    def read(digest: str) -> bytes:
        return fetch_blob(door, reference.repository, sizes[digest], sleep)

    return adopt(manifest_bytes, read, str(reference))


def fetch_manifest(door: Doorway, reference: Reference) -> bytes:
    """The manifest's bytes; `BadReleaseError` when they are not of the digest asked for, or no image manifest."""
    repository = reference.repository
    what = f"manifest {repository}:{reference.wanted}"
    path = f"/v2/{repository}/manifests/{reference.wanted}"
    with door.ask("GET", path, _scope(repository), headers={"Accept": MANIFEST_TYPE}) as answer:
        door.check(answer, what, 200)
        data = read_limited(answer, MAX_MANIFEST_BYTES, what)
        kind, told = answer.headers.get("content-type", ""), answer.headers.get("docker-content-digest", "")
    digest = f"sha256:{digest_of(data)}"
    if digest != (reference.digest or digest) or (told.startswith("sha256:") and told != digest):
        raise BadReleaseError(f"{reference}: the registry sent a manifest of digest {digest}")
    if kind.partition(";")[0].strip() != MANIFEST_TYPE:
        raise BadReleaseError(
            f"{reference}: is {kind[:80] or 'of no type'}, not an OCI image manifest; name one platform"
        )
    return data


def fetch_blob(door: Doorway, repository: str, blob: Descriptor, sleep: Sleep = time.sleep) -> bytes:
    """A blob, going on by ranges where the connection breaks; at most the size its descriptor names is read."""
    data, failures = bytearray(), 0
    what = f"blob {blob.sha256[:12]} of {repository}"
    while len(data) < blob.size:
        before = len(data)
        try:
            _fetch_rest(door, repository, blob, data, what)
        except RegistryAwayError:
            failures = 0 if len(data) > before else failures + 1
            if failures >= ATTEMPTS:
                raise
            sleep(0.2 * 2**failures)
    if hashlib.sha256(data).hexdigest() != blob.sha256:
        raise BadReleaseError(f"{door.registry}: {what}: the bytes do not have their digest")
    return bytes(data)


def _fetch_rest(door: Doorway, repository: str, blob: Descriptor, data: bytearray, what: str) -> None:
    headers = {"Range": f"bytes={len(data)}-{blob.size - 1}"} if data else {}
    with door.ask("GET", f"/v2/{repository}/blobs/{blob.digest}", _scope(repository), headers=headers) as answer:
        door.check(answer, what, 200, 206)
        if answer.status_code == 206 and not answer.headers.get("content-range", "").startswith(f"bytes {len(data)}-"):
            raise RegistryError(f"{door.registry}: {what}: sent another range than was asked for")
        if answer.status_code == 200:
            data.clear()
        _take(answer, data, blob.size, f"{door.registry}: {what}")
    if len(data) < blob.size:
        raise RegistryAwayError(f"{door.registry}: {what}: ended after {len(data)} of {blob.size} bytes")


def _take(answer: httpx2.Response, data: bytearray, limit: int, what: str) -> None:
    try:
        for chunk in answer.iter_raw():
            if len(data) + len(chunk) > limit:
                raise BadReleaseError(f"{what}: longer than the {limit} bytes the manifest names")
            data += chunk
    except httpx2.HTTPError as error:
        raise RegistryAwayError(f"{what}: broke off after {len(data)} bytes ({type(error).__name__})") from error


def push_release(door: Doorway, reference: Reference, packed: Packed, sleep: Sleep = time.sleep) -> str:
    """Put a release where the reference says, its blobs first, what is there already not again; its digest."""
    if reference.digest and reference.digest != f"sha256:{packed.digest}":
        raise BadReleaseError(f"{reference}: this release has the digest sha256:{packed.digest}")
    for digest, data in packed.blobs.items():
        push_blob(door, reference.repository, digest, data, sleep)
    wanted = reference.tag or f"sha256:{packed.digest}"
    path, what = f"/v2/{reference.repository}/manifests/{wanted}", f"manifest {reference.repository}:{wanted}"
    headers = {"Content-Type": MANIFEST_TYPE}
    with door.ask(
        "PUT", path, _scope(reference.repository, "pull,push"), headers=headers, content=packed.manifest_bytes
    ) as answer:
        door.check(answer, what, 201)
        told = answer.headers.get("docker-content-digest", "")
    if told and told != f"sha256:{packed.digest}":
        raise RegistryError(f"{door.registry}: {what}: was stored as {told[:80]}")
    return packed.digest


def push_blob(door: Doorway, repository: str, digest: str, data: bytes, sleep: Sleep = time.sleep) -> None:
    """Upload a blob in pieces, going on from what the registry has where the connection breaks."""
    scope, what = _scope(repository, "pull,push"), f"blob {digest[:12]} of {repository}"
    with door.ask("HEAD", f"/v2/{repository}/blobs/sha256:{digest}", scope) as answer:
        if answer.status_code == 200:
            return
    with door.ask("POST", f"/v2/{repository}/blobs/uploads/", scope) as answer:
        door.check(answer, what, 202)
        place = _place(door, answer, what)
    upload = _Upload(door, scope, what, place)
    upload.send(data, sleep)
    upload.close(digest)


class _Upload:
    """One blob on its way up, in pieces."""

    def __init__(self, door: Doorway, scope: str, what: str, place: str) -> None:
        self._door = door
        self._scope = scope
        self._what = what
        self._place = place

    def send(self, data: bytes, sleep: Sleep) -> None:
        """Every piece, in order; what the registry has already is not sent again."""
        sent = failures = 0
        while sent < len(data):
            try:
                sent = self._send_piece(data, sent)
                failures = 0
            except RegistryAwayError:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                sleep(0.2 * 2**failures)
                before, sent = sent, self._had()
                failures = 0 if sent > before else failures

    def close(self, digest: str) -> None:
        """Say which blob the pieces are; the registry checks it."""
        joint = "&" if urlsplit(self._place).query else "?"
        closing = f"{self._place}{joint}digest={quote(f'sha256:{digest}')}"
        with self._door.ask("PUT", closing, self._scope, headers={"Content-Length": "0"}) as answer:
            self._door.check(answer, self._what, 201)

    def _send_piece(self, data: bytes, sent: int) -> int:
        piece = data[sent : sent + CHUNK_BYTES]
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{sent}-{sent + len(piece) - 1}"}
        with self._door.ask("PATCH", self._place, self._scope, headers=headers, content=piece) as answer:
            self._door.check(answer, self._what, 202)
            self._place = _place(self._door, answer, self._what)
        return sent + len(piece)

    def _had(self) -> int:
        """How many bytes the registry has."""
        with self._door.ask("GET", self._place, self._scope) as answer:
            self._door.check(answer, self._what, 204)
            found = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("range", ""))
            self._place = _place(self._door, answer, self._what)
        # A registry that has nothing says 0-0; pieces are of more than one byte, so it never means that one is there.
        last = int(found.group(1)) if found else 0
        return last + 1 if last else 0


def _place(door: Doorway, answer: httpx2.Response, what: str) -> str:
    """The upload's next URL: on the registry itself, since credentials and the model go there."""
    place = str(httpx2.URL(str(answer.request.url)).join(answer.headers.get("location", "")))
    if urlsplit(place).netloc != door.registry or not place.startswith(door.base):
        raise RegistryError(f"{door.registry}: {what}: would have it uploaded to {urlsplit(place).netloc[:80]!r}")
    return place


def _scope(repository: str, actions: str = "pull") -> str:
    return f"repository:{repository}:{actions}"
