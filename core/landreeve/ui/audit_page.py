"""The part of an audit page that both consoles share: entries that match a filter, and a check that was asked for."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from landreeve.ui.inside import Api, ApiError

MEMBERS = ("actor", "action", "object", "decision", "since", "until")
SHOWN = 50


async def load(api: Api, query: Mapping[str, str]) -> dict[str, Any]:
    """``entries`` is None where the person may not read them; ``checked`` where nobody asked for a check;
    ``trouble`` says what of the filter cannot be used."""
    asked = {name: query[name].strip() for name in MEMBERS if query.get(name, "").strip()}
    before = query.get("before", "0")
    before = before if before.isascii() and before.isdecimal() else "0"
    entries: list[dict[str, Any]] | None = []
    older, trouble = None, ""
    try:
        found = await api.get("audit", query={**asked, "before": before, "limit": str(SHOWN)})
        entries, older = found["items"], found["next"]
    except ApiError as error:
        if error.status == 403:
            entries = None
        elif error.status == 422:
            trouble = error.detail
        else:
            raise
    checking = bool(query.get("verify")) and entries is not None
    return {
        "entries": entries,
        "asked": asked,
        "trouble": trouble,
        "newer": f"/audit?{urlencode(asked)}" if before != "0" else "",
        "older": f"/audit?{urlencode({**asked, 'before': older})}" if older else "",
        "checked": await api.get("audit", "verify") if checking else None,
    }
