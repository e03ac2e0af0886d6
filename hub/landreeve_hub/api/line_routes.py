"""What the line of each site may carry of artifacts."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from landreeve.wire.schedule import LineRules, fault_of_windows, fault_of_zone
from msgspec import Meta
from sqlalchemy import Connection

from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Permission
from landreeve_hub.api.body import read, text_of
from landreeve_hub.api.guard import may
from landreeve_hub.api.problems import Problem
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.desired import lines


class NewLine(msgspec.Struct, forbid_unknown_fields=True):
    """For one ``site``: a box's own name, or the value of its label ``site``. ``windows`` is a list or one text with
    ``;`` between; 0 and no windows lift the fleet's rules. ``forget`` gives way to them again."""

    site: str
    mb_per_hour: Annotated[float, Meta(ge=0, le=lines.MOST_MB_PER_HOUR)] = 0.0
    windows: tuple[str, ...] | str = ()
    zone: str = ""
    forget: bool = False


def router(services: Services) -> APIRouter:
    """The routes, over these services."""
    routes, store = APIRouter(), services.store

    @routes.get("/lines")
    async def listed(_: Annotated[Person, may(Permission.VIEW)]) -> dict[str, Any]:
        """The fleet's rules (null leaves it to the sites) and those of each site that has some."""
        return {"fleet": services.line, "lines": await store.read(lines.listed)}

    @routes.post("/lines")
    async def change(request: Request, person: Annotated[Person, may(Permission.STEER)]) -> dict[str, Any]:
        """Say what a site's line may carry."""
        asked, now = await read(request, NewLine), services.clock()
        windows = _windows(asked)
        rules = None if asked.forget else _rules(asked, windows)

        def write(connection: Connection) -> set[str]:
            concerned = lines.at_site(connection, asked.site)
            if not concerned and rules is not None:
                raise Problem(404, f"There is no device at a site {text_of(asked.site)}.")
            lines.set_line(connection, asked.site, rules, windows, person.name, now)
            data = {**_shown(asked, windows), "forget": asked.forget, "devices": len(concerned)}
            services.audit.record_in(connection, now, Act(person.name, "site.line", asked.site, data=data))
            return concerned

        concerned = await store.write(write)
        services.runner.touch(concerned)
        services.changes.say("fleet")
        return {"site": asked.site, **_shown(asked, windows), "forgotten": asked.forget, "devices": sorted(concerned)}

    return routes


def _windows(asked: NewLine) -> tuple[str, ...]:
    given = asked.windows.split(";") if isinstance(asked.windows, str) else asked.windows
    return tuple(text.strip() for text in given if text.strip())


def _rules(asked: NewLine, windows: tuple[str, ...]) -> LineRules:
    try:
        rules = lines.rules_of(asked.mb_per_hour, windows, asked.zone)
    except ValueError as error:
        raise Problem(422, f"body.windows: {error}; write it like mon-fri 22:00-06:00") from error
    if fault := fault_of_windows(rules.windows):
        raise Problem(422, f"body.windows: {fault}")
    if rules.zone and (fault := fault_of_zone(rules.zone)):
        raise Problem(422, f"body.zone: {fault}")
    return rules


def _shown(asked: NewLine, windows: tuple[str, ...]) -> dict[str, Any]:
    return {"mb_per_hour": asked.mb_per_hour, "windows": list(windows), "zone": asked.zone}
