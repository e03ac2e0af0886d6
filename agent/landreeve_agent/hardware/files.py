"""Reading one small kernel file under a root, where absence is an answer."""

from pathlib import Path


def read_text(path: Path) -> str:
    """The file's stripped text; empty when it is missing, forbidden, or its driver does not answer."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def link_name(path: Path) -> str:
    """The last part of a symbolic link's target, such as a driver's name; empty when there is no link."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def children(folder: Path, pattern: str = "*") -> list[Path]:
    """The folder's entries by name; empty when it is missing."""
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def count_list(text: str) -> int:
    """How many numbers a kernel list names.

    >>> count_list("0-3,8"), count_list("")
    (5, 0)
    """
    total = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
