"""Files that no release needs any more: which they are, and their removal."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.guard import may
from landreeve_hub.api.services import Services
from landreeve_hub.registry.garbage import Item


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()

    @routes.get("/blobs/garbage")
    async def garbage(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """Files that no release needs, why, for how many seconds that has been seen, and after how many they go (null:
        never). Nothing is changed."""
        return _shown(await services.garbage.look(services.clock(), dry=True))

    @routes.post("/blobs/gc")
    async def collect(person: Annotated[Person, may(Permission.STEER)]) -> dict[str, Any]:
        """Look now instead of within the hour, and remove what has been needless for long enough."""
        return _shown(await services.garbage.look(services.clock(), by=person.name))

    return routes


def _shown(found: list[Item]) -> dict[str, Any]:
    removed = [item for item in found if item.removed]
    return {
        "blobs": [msgspec.to_builtins(item) for item in found],
        "bytes": sum(item.bytes for item in found),
        "removed": len(removed),
        "removed_bytes": sum(item.bytes for item in removed),
    }
