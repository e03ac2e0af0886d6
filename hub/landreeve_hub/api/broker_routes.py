"""The broker: does it do what it must, and what to put into one that the hub does not run."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import text_of
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.broker.external import External, configuration
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.inventory import guests


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes = APIRouter()

    @routes.post("/broker/check")
    async def check(_: Annotated[Person, may(Permission.ENROL)]) -> dict[str, Any]:
        """Try the broker in use as a bad device would; takes some seconds. For each check what was expected, what
        happened, and what to change in mosquitto, NATS or EMQX."""
        if services.check_broker is None:
            raise Problem(503, "This hub has no broker to check.")
        try:
            findings = await services.check_broker()
        except BrokerError as error:
            raise Problem(503, str(error)) from error
        return {"ok": all(found.ok for found in findings), "findings": msgspec.to_builtins(findings)}

    @routes.get("/broker/config/{kind}")
    async def config(kind: str, _: Annotated[Person, may(Permission.ENROL)]) -> dict[str, Any]:
        """The files of such a broker's configuration, by name; ``proven`` when our own tests run such a broker with
        them."""
        if kind not in set(External):
            raise Problem(404, f"No broker is called {text_of(kind)}: {', '.join(External)} are known.")
        known = await services.store.read(guests)
        asked = External(kind)
        return {"kind": kind, "proven": asked.proven, "files": configuration(asked, services.fleet, known)}

    return routes
