"""Which names a file of a release may have: such that every system we or others lay it out on sees the same file.

Refused are absolute paths, ``..``, NUL and other control characters, backslashes, colons (drive letters, NTFS
streams), characters that look like a separator or change under Unicode normalisation, names that Windows reserves,
trailing dots and spaces, and two names that differ only in case.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from landreeve.release.errors import BadReleaseError

MAX_PATH_BYTES = 240
MAX_PARTS = 8
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+ ()@=,")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{kind}{number}" for kind in ("com", "lpt") for number in "0123456789¹²³"}
)


def check_plain(path: str) -> str:
    """The same relative path when it is plain; `BadReleaseError` says what is wrong with it.

    >>> check_plain("deep/er.json")
    'deep/er.json'
    """
    if wrong := _wrong(path):
        raise BadReleaseError(
            f"layer path {path[:120]!r}: {wrong}; it must be a plain relative path such as 'model.onnx'"
        )
    return path


def check_together(paths: Iterable[str]) -> None:
    """Return when the paths can lie in one folder on any system; `BadReleaseError` names those that cannot."""
    seen: dict[str, str] = {}
    for path in paths:
        same = folded(path)
        if same in seen:
            raise BadReleaseError(
                f"layer {path!r} occurs twice"
                if seen[same] == path
                else f"layers {seen[same]!r} and {path!r} differ only in case"
            )
        seen[same] = path
    for same, path in seen.items():
        for parent in PurePosixPath(same).parents:
            if str(parent) in seen:
                raise BadReleaseError(f"layer {seen[str(parent)]!r} would be a file and the folder of {path!r}")


def folded(path: str) -> str:
    """What a system that ignores case takes the path for."""
    return unicodedata.normalize("NFC", path.casefold())


def _wrong(path: str) -> str:
    if not path or len(path.encode(errors="replace")) > MAX_PATH_BYTES:
        return f"empty, or longer than {MAX_PATH_BYTES} bytes"
    if path.startswith("/"):
        return "absolute"
    strange = next((c for c in path if c != "/" and not _usual(c)), "")
    if strange:
        return f"holds U+{ord(strange):04X} ({unicodedata.name(strange, 'a control character').lower()})"
    if unicodedata.normalize("NFKC", path) != path:
        return "changes under Unicode normalisation"
    parts = path.split("/")
    if len(parts) > MAX_PARTS:
        return f"deeper than {MAX_PARTS} folders"
    return next((wrong for part in parts if (wrong := _wrong_part(part))), "")


def _usual(character: str) -> bool:
    """Letters, marks and digits of any script, and a few ASCII signs: no look-alike of a separator is among them."""
    return character in _PLAIN or (ord(character) > 127 and unicodedata.category(character)[0] in "LMN")


def _wrong_part(part: str) -> str:
    if part == "..":
        return "leads out of the folder by '..'"
    if not part.strip(". "):
        return "has an empty part"
    if part != part.rstrip(". ") or part != part.lstrip(" "):
        return f"part {part[:40]!r} ends in a dot or begins or ends with a space"
    if part.partition(".")[0].rstrip().casefold() in _DEVICES:
        return f"{part[:40]!r} is a device on Windows"
    return ""
