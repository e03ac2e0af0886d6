"""A registry of others in memory, with the ways real ones have: tokens, redirects, connections that break.

It passes the same round trip as Debian's docker-registry (`tests/hub/test_exchange.py`).
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import httpx2

HOST = "registry.example"
USER, PASSWORD = "ann", "correct horse"


class Breaking(httpx2.SyncByteStream):
    """A body whose connection breaks after some bytes."""

    def __init__(self, data: bytes, after: int) -> None:
        self.data = data
        self.after = after

    def __iter__(self) -> Iterator[bytes]:
        yield self.data[: self.after]
        if len(self.data) > self.after:
            raise httpx2.ReadError("broken")


class FakeRegistry:
    """``auth`` is ``none``, ``basic`` or ``bearer``; ``break_after`` bytes every download and upload breaks off;
    ``store`` is a host that blobs are redirected to. ``seen`` has host, method, path and ``Authorization``."""

    def __init__(self, auth: str = "none", *, break_after: int = 0, store: str = "", ranges: bool = True) -> None:
        self.auth = auth
        self.break_after = break_after
        self.store = store
        self.ranges = ranges
        self.realm = f"https://auth.{HOST}/token"
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str, str]] = []

    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self.handle)

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        host, path = request.url.host, request.url.path
        proof = request.headers.get("authorization", "")
        self.seen.append((host, request.method, path, proof))
        if host == f"auth.{HOST}":
            return self._token(request, proof)
        if self.store and host == self.store:
            return self._give(request, self.blobs[path.rpartition("/")[2]])
        if not self._let_in(proof):
            return httpx2.Response(401, headers={"WWW-Authenticate": self._challenge()}, json=error("UNAUTHORIZED"))
        return self._answer(request, path)

    def _token(self, request: httpx2.Request, proof: str) -> httpx2.Response:
        if proof != basic():
            return httpx2.Response(401, json=error("UNAUTHORIZED"))
        return httpx2.Response(200, json={"token": f"for {request.url.params['scope']}"})

    def _let_in(self, proof: str) -> bool:
        if self.auth == "bearer":
            return proof.startswith("Bearer for repository:")
        return self.auth == "none" or proof == basic()

    def _challenge(self) -> str:
        return f'Bearer realm="{self.realm}",service="{HOST}"' if self.auth == "bearer" else 'Basic realm="x"'

    def _answer(self, request: httpx2.Request, path: str) -> httpx2.Response:
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            return self._manifest(request, found.group(2))
        if found := re.fullmatch(r"/v2/(.+)/blobs/uploads/(.*)", path):
            return self._upload(request, found.group(1), found.group(2))
        if found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:.+)", path):
            digest = found.group(2)
            if digest not in self.blobs:
                return httpx2.Response(404, json=error("BLOB_UNKNOWN"))
            if request.method == "HEAD":
                return httpx2.Response(200)
            if self.store:
                return httpx2.Response(307, headers={"Location": f"https://{self.store}/x/{digest}"})
            return self._give(request, self.blobs[digest])
        return httpx2.Response(404, json=error("NAME_UNKNOWN"))

    def _manifest(self, request: httpx2.Request, wanted: str) -> httpx2.Response:
        if request.method == "PUT":
            kind, data = request.headers["content-type"], request.content
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.manifests[wanted] = self.manifests[digest] = (kind, data)
            return httpx2.Response(201, headers={"Docker-Content-Digest": digest})
        if wanted not in self.manifests:
            return httpx2.Response(404, json=error("MANIFEST_UNKNOWN"))
        kind, data = self.manifests[wanted]
        return httpx2.Response(200, headers={"Content-Type": kind}, stream=Breaking(data, len(data)))

    def _give(self, request: httpx2.Request, data: bytes) -> httpx2.Response:
        first = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0]) if self.ranges else 0
        status = 206 if first else 200
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        rest = data[first:]
        return httpx2.Response(status, headers=headers, stream=Breaking(rest, self.break_after or len(rest)))

    def _upload(self, request: httpx2.Request, name: str, number: str) -> httpx2.Response:
        if request.method == "POST":
            number = str(len(self.uploads))
            self.uploads[number] = b""
            return httpx2.Response(202, headers=self._place(name, number))
        had = self.uploads[number]
        if request.method == "PATCH":
            first = int(request.headers["content-range"].partition("-")[0])
            if first != len(had):
                return httpx2.Response(416, headers=self._place(name, number))
            taken = request.content[: self.break_after or None]
            self.uploads[number] = had + taken
            if len(taken) < len(request.content):
                raise httpx2.WriteError("broken")
            return httpx2.Response(202, headers=self._place(name, number))
        if request.method == "GET":
            return httpx2.Response(204, headers=self._place(name, number))
        digest = request.url.params["digest"]
        if digest != f"sha256:{hashlib.sha256(had).hexdigest()}":
            return httpx2.Response(400, json=error("DIGEST_INVALID"))
        self.blobs[digest] = had
        return httpx2.Response(201, headers={"Docker-Content-Digest": digest})

    def _place(self, name: str, number: str) -> dict[str, str]:
        last = max(0, len(self.uploads[number]) - 1)
        return {"Location": f"/v2/{name}/blobs/uploads/{number}?state=1", "Range": f"0-{last}"}


def basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def error(code: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": f"{code} it is"}]}
