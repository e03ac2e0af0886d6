"""The order among the components of a device, the same rules on hub and device: which comes after which.

An order may name components that must have come to the end of their own orders first (`DesiredModel.after`). A device
whose agent says `FEATURE` keeps to it by itself; for one that does not the hub waits for the outcome of the first
before it orders the second.
"""

from collections.abc import Collection, Mapping

from landreeve.wire.ids import BadIdError, check_id

FEATURE = "after/1"
"""What a device says in `Birth.features` when it keeps to the order among components."""
MOST_NAMES = 16


def fault_of_names(after: Collection[str]) -> str:
    """What nobody could mean by these names; empty when they can be waited for.

    >>> fault_of_names(("landreeve-agent", "firmware"))
    ''
    >>> fault_of_names(("firmware", "firmware"))
    "'firmware' is named twice"
    """
    if len(after) > MOST_NAMES:
        return f"{len(after)} names; at most {MOST_NAMES}"
    seen: set[str] = set()
    for name in after:
        try:
            check_id(name)
        except BadIdError as error:
            return str(error)
        if name in seen:
            return f"{name!r} is named twice"
        seen.add(name)
    return ""


def circle(after: Mapping[str, Collection[str]], start: str) -> tuple[str, ...]:
    """The way from ``start`` through what it waits for back to ``start``; empty when there is none.

    >>> circle({"a": ["b"], "b": ["c"], "c": ["a", "d"]}, "a")
    ('a', 'b', 'c', 'a')
    >>> circle({"a": ["b"], "b": ["c"]}, "a")
    ()
    """
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for name in after.get(way[-1], ()):
            if name == start:
                return (*way, name)
            if name not in seen:
                seen.add(name)
                ways.append((*way, name))
    return ()
