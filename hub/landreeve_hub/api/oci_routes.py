"""``/v2/``: releases for any client of the OCI distribution specification 1.1. Reading only.

Clients show a token of the hub as bearer, or as the password of any user name; those that insist on asking a token
service first are answered with the very token they showed, so a revoked one ends at once and scopes stay as they are.
"""

import base64
import binascii
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.requests import HTTPConnection

from landreeve_hub.access import identity
from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api import oci_blobs
from landreeve_hub.api.guard import Require
from landreeve_hub.api.oci_errors import VERSION_HEADER, OciProblem
from landreeve_hub.api.services import Services
from landreeve_hub.registry.shelf import Document, NoSuchBlobError, NoSuchManifestError, NoSuchRepositoryError

PREFIX = "/v2"
SERVICE = "landreeve-hub"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MAX_TAGS = 1000
READ, WRITE = ["GET", "HEAD"], ["POST", "PUT", "PATCH", "DELETE"]
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}  # what a digest names never changes


class RequirePull(Require):
    """May this client read releases? 401 carries the challenge that clients know how to answer."""

    def __init__(self) -> None:
        super().__init__(Permission.VIEW)

    async def __call__(self, request: Request) -> Person:
        person, _ = await _caller(request)
        if person is None:
            message = "authentication required: a token of this hub, as bearer or as password of any user name"
            raise OciProblem(401, "UNAUTHORIZED", message, {"WWW-Authenticate": _challenge(request)})
        if not person.may(self.permission):
            raise OciProblem(403, "DENIED", f"the token's scopes do not hold '{self.permission}'")
        return person


Puller = Annotated[Person, Depends(RequirePull())]


async def _caller(request: HTTPConnection) -> tuple[Person | None, str]:
    """Who asks, and the token they showed. Sessions of browsers do not count here."""
    services: Services = request.app.state.services
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    secret = value.strip()
    if kind.lower() == "basic":
        try:
            _, _, secret = base64.b64decode(secret, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            secret = ""
    elif kind.lower() != "bearer":
        secret = ""
    now = services.clock()
    return (await services.store.read(lambda c: identity.by_token(c, secret, now)) if secret else None), secret


def _challenge(request: Request) -> str:
    """RFC 6750 as registries use it; the realm is this hub as the client named it."""
    name = request.path_params.get("name", "")
    scope = f',scope="repository:{name}:pull"' if name else ""
    base = request.base_url
    if request.headers.get("x-forwarded-proto") == "https":
        base = base.replace(scheme="https")  # a proxy's word is taken only for more safety
    return f'Bearer realm="{str(base).rstrip("/")}{PREFIX}/token",service="{SERVICE}"{scope}'


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, shelf = APIRouter(include_in_schema=False), services.releases.shelf

    @routes.api_route("/", methods=READ)
    async def version(_: Puller) -> Response:
        """This is a registry, and the caller may use it."""
        return _json({})

    @routes.get("/token")
    async def token(request: Request, _: Puller) -> Response:
        """The token for further calls: the one that was shown."""
        secret = (await _caller(request))[1]
        return _json({"token": secret, "access_token": secret, "expires_in": 300}, {"Cache-Control": "no-store"})

    @routes.get("/_catalog")
    async def catalogue(request: Request, _: Puller) -> Response:
        """Every repository."""
        names = await shelf.repositories()
        page, headers = _page(request, names)
        return _json({"repositories": page}, headers)

    @routes.get("/{name:path}/tags/list")
    async def tags(name: str, request: Request, _: Puller) -> Response:
        """A repository's tags, from after ``last``, at most ``n``."""
        try:
            page, headers = _page(request, await shelf.tags(name))
        except NoSuchRepositoryError as error:
            raise _unknown_name(error) from error
        return _json({"name": name, "tags": page}, headers)

    @routes.api_route("/{name:path}/manifests/{wanted}", methods=READ)
    async def manifest(name: str, wanted: str, request: Request, _: Puller) -> Response:
        """A manifest by tag or digest."""
        try:
            found = await shelf.manifest(name, wanted)
        except NoSuchRepositoryError as error:
            raise _unknown_name(error) from error
        except NoSuchManifestError as error:
            raise OciProblem(404, "MANIFEST_UNKNOWN", str(error)) from error
        return _manifest(request, found, by_digest=":" in wanted)

    @routes.api_route("/{name:path}/blobs/{digest}", methods=READ)
    async def blob(name: str, digest: str, request: Request, _: Puller) -> Response:
        """A blob by digest, whole or a range of it."""
        value = _sha256(digest)
        try:
            found = await shelf.blob(name, value)
        except NoSuchRepositoryError as error:
            raise _unknown_name(error) from error
        except NoSuchBlobError as error:
            raise OciProblem(404, "BLOB_UNKNOWN", str(error)) from error
        headers = {**VERSION_HEADER, **_KEPT, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return oci_blobs.respond(request, found, headers)

    _referrers(routes, services)
    _refusals(routes)
    return routes


def _referrers(routes: APIRouter, services: Services) -> None:
    shelf = services.releases.shelf

    @routes.get("/{name:path}/referrers/{digest}")
    async def referrers(name: str, digest: str, request: Request, _: Puller) -> Response:
        """What refers to a manifest, as an index."""
        value, kind = _sha256(digest), request.query_params.get("artifactType", "")
        try:
            found = await shelf.referrers(name, value)
        except NoSuchRepositoryError as error:
            raise _unknown_name(error) from error
        shown = [one for one in found if kind in {"", one["artifactType"]}]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": shown}
        return _json(index, {"OCI-Filters-Applied": "artifactType"} if kind else {}, INDEX_TYPE)


def _refusals(routes: APIRouter) -> None:
    @routes.api_route("/{rest:path}", methods=WRITE)
    async def write(rest: str, _: Puller) -> Response:
        """Nothing is written by this way."""
        del rest
        message = "this registry is read only; push with 'landreeve-hub model push', where a release is judged first"
        raise OciProblem(405, "UNSUPPORTED", message, {"Allow": "GET, HEAD"})

    @routes.api_route("/{rest:path}", methods=READ)
    async def other(rest: str, _: Puller) -> Response:
        """No such thing."""
        raise OciProblem(404, "NAME_UNKNOWN", f"/v2/{rest[:80]} is nothing of this registry")


def _manifest(request: Request, found: Document, *, by_digest: bool) -> Response:
    digest = f"sha256:{found.digest}"
    kept = _KEPT if by_digest else {"Cache-Control": "no-cache"}
    headers = {**VERSION_HEADER, **kept, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
    if f'"{digest}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(len(found.data))
    return Response(b"" if request.method == "HEAD" else found.data, headers=headers, media_type=found.media_type)


def _page(request: Request, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """The names asked for, and the link to the next ones."""
    last, count = request.query_params.get("last", ""), request.query_params.get("n", "")
    if count and not (count.isascii() and count.isdigit() and len(count) < 10):
        raise OciProblem(400, "UNSUPPORTED", f"n={count[:20]}: must be a number, 0 or more")
    left = [name for name in names if name > last]
    limit = min(int(count), MAX_TAGS) if count else MAX_TAGS
    page = left[:limit]
    if not page or len(page) == len(left):
        return page, {}
    query = f"n={limit}&last={quote(page[-1])}"
    return page, {"Link": f'<{request.url.path}?{query}>; rel="next"'}


def _sha256(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise OciProblem(400, "DIGEST_INVALID", f"digest {digest[:80]!r}: must be sha256: and 64 lower-case hex digits")
    return value


def _unknown_name(error: Exception) -> OciProblem:
    return OciProblem(404, "NAME_UNKNOWN", str(error))


def _json(body: Any, headers: dict[str, str] | None = None, kind: str = "application/json") -> Response:
    return Response(msgspec.json.encode(body), headers={**VERSION_HEADER, **(headers or {})}, media_type=kind)
