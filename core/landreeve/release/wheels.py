"""What a wheel must be to ride in a release of the agent itself. Only its table of contents is read.

A wheel is code and is trusted as code: by the approvers' signatures. What is refused here is a file that is no wheel,
one that would write outside its environment, and one that would fill the disk.
Source: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import io
import zipfile
from pathlib import PurePosixPath

from landreeve.release.errors import BadReleaseError

MAX_FILES = 20_000
MAX_UNPACKED_BYTES = 1024**3
MAX_RATIO = 200


def check_wheel(path: str, data: bytes) -> None:
    """Return when the bytes are such a wheel; `BadReleaseError` says what is wrong."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise BadReleaseError(f"{path}: no wheel: {str(error)[:120]}") from error
    if len(entries) > MAX_FILES:
        raise BadReleaseError(f"{path}: {len(entries)} files, at most {MAX_FILES}")
    size = sum(entry.file_size for entry in entries)
    if size > min(MAX_UNPACKED_BYTES, MAX_RATIO * max(len(data), 1)):
        raise BadReleaseError(f"{path}: would unpack to {size} bytes from {len(data)}")
    names = [entry.filename for entry in entries]
    for name in names:
        _check_name(path, name)
    own = "-".join(PurePosixPath(path).name.split("-")[:2])
    for needed in ("METADATA", "WHEEL", "RECORD"):
        if f"{own}.dist-info/{needed}" not in names:
            raise BadReleaseError(f"{path}: no wheel of {own}: it has no {own}.dist-info/{needed}")


def _check_name(path: str, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or ":" in parts[0]:
        raise BadReleaseError(f"{path}: {name[:80]!r} lies outside the environment")
    if parts[0].endswith(".data"):
        raise BadReleaseError(f"{path}: {name[:80]!r}: files beyond the package's own folder are not accepted")
    if len(parts) == 1 and name.endswith(".pth"):
        raise BadReleaseError(f"{path}: {name[:80]!r}: would run at every start of the interpreter")
