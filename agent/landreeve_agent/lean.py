"""Keeping the supervisor small: what it imports, and how its allocator behaves. Linux with glibc; elsewhere no-ops."""

import ctypes
import gc
import importlib
import sys

_M_ARENA_MAX = -8  # malloc.h


def import_without(name: str, *unwanted: str) -> None:
    """Import a module that would also import others where they are installed, only to support their types.

    What was not loaded yet stays loadable afterwards.
    """
    hidden = [module for module in unwanted if module not in sys.modules]
    for module in hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        importlib.import_module(name)
    finally:
        for module in hidden:
            del sys.modules[module]


def do_without(name: str) -> None:
    """Make importing that module fail from now on: for a library that looks for it, and goes on when it is not there.

    Nothing in this process may need it.
    """
    sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def share_arenas() -> None:
    """Two heaps for all threads; glibc would give each of ours its own, and none gives memory back to another."""
    _libc_call("mallopt", _M_ARENA_MAX, 2)


def give_back() -> None:
    """Return to the system what starting up took and does not need any more."""
    gc.collect()
    _libc_call("malloc_trim", 0)


def _libc_call(name: str, *arguments: int) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return  # not glibc: the allocator has no such knob
    function(*arguments)
