"""Room on the disk for the way back: a file that is given up when there is no other room to return to what is proven.

What a return needs has been on the disk since the version was proven; only the journal, the report and the pointer are
written anew, a few pages each. On a disk that somebody else filled even these fail, and the version on probation would
go on answering, whatever it does. Released is released for everyone, so the writer tries again at once.
"""

import errno
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

RESERVE_FILE = ".reserve"
RESERVED_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Reserve:
    """The file, and its length."""

    file: Path
    size: int = RESERVED_BYTES

    def hold(self) -> bool:
        """Set the room aside, unless that would take the last there is; whether it is."""
        try:
            if self.file.exists() and self.file.stat().st_size == self.size:
                return True
            if shutil.disk_usage(self.file.parent).free < 2 * self.size:
                return False
            made = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(made, 0, self.size)
            finally:
                os.close(made)
        except OSError as error:
            logger.warning("no room is set aside for a return: %s", error)
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Give it up; whether there was any."""
        try:
            self.file.unlink()
        except OSError:
            return False
        logger.warning("the disk is full: the room set aside for a return is given up")
        return True


def is_full(error: BaseException | None) -> bool:
    """Whether it was for want of room: of a file, or of SQLite.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device"))
    True
    """
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return "disk is full" in str(error) or is_full(error.__cause__)
