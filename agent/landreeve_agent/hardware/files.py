"""Reading small kernel files under a root, where absence is an answer."""

from pathlib import Path


def read_text(path: Path) -> str:
    """The file's stripped text; empty when it is missing, forbidden, or its driver does not answer."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def read_number(path: Path) -> int:
    """The file's whole number, decimal or hexadecimal; 0 when there is none.

    Some drivers' attributes fail with ENODATA or EBUSY while the device sleeps: that counts as none too.
    """
    try:
        return int(read_text(path), 0)
    except ValueError:
        return 0


def read_strings(path: Path) -> tuple[str, ...]:
    """The strings of a device tree property, which are separated by zero bytes."""
    return tuple(part for part in read_text(path).split("\0") if part)


def fields(text: str) -> dict[str, str]:
    """The ``name: value`` lines of a kernel file; of a repeated name the first counts.

    >>> fields("MemTotal:  16 kB\\nno value\\nMemTotal: 1 kB")
    {'MemTotal': '16 kB'}
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def variables(text: str) -> dict[str, str]:
    """The ``NAME=value`` lines of a uevent file.

    >>> variables("DRIVER=RKNPU\\nOF_NAME=npu")
    {'DRIVER': 'RKNPU', 'OF_NAME': 'npu'}
    """
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, separator, value in pairs if separator}


def link_name(path: Path) -> str:
    """The last part of a symbolic link's target, such as a driver's name; empty when there is no link."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def children(folder: Path, pattern: str = "*") -> list[Path]:
    """The folder's entries by name; empty when it is missing."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def numbers(text: str) -> tuple[int, ...]:
    """The numbers a kernel list names, in order; what is no number is left out.

    >>> numbers("0-3,8"), numbers(""), numbers("2-1,x")
    ((0, 1, 2, 3, 8), (), ())
    """
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def as_list(found: tuple[int, ...]) -> str:
    """Numbers as the kernel writes them.

    >>> as_list((0, 1, 2, 8)), as_list(())
    ('0-2,8', '')
    """
    runs: list[list[int]] = []
    for number in found:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
