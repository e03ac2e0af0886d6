"""What was found out about this box's devices, kept in the agent's state between runs.

A proof holds while its key does: a new driver, firmware, library, runtime or kernel makes another key. A file that
cannot be read is a box that was never proven.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from landreeve_agent.hardware.inventory import Proof, Runtime

logger = logging.getLogger(__name__)

_KEPT = 100
_VERSION = 1


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime listed, and the key under which it still would."""

    key: str
    runtime: Runtime


class _File(msgspec.Struct, kw_only=True):
    version: int = _VERSION
    proofs: tuple[Proof, ...] = ()
    listed: tuple[Listed, ...] = ()


@dataclass
class Remembered:
    """The file's contents; every change is on the disk before the call returns, or a warning is in the log."""

    path: Path
    _file: _File = field(default_factory=_File)

    @classmethod
    def load(cls, path: Path) -> "Remembered":
        """What is remembered there."""
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            found = _File()
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("%s cannot be read (%s): every device will be proven again", path, error)
            found = _File()
        return cls(path, found if found.version == _VERSION else _File())

    def proof(self, runtime: str, target: str, key: str) -> Proof | None:
        """The proof that holds, if any."""
        same = (p for p in self._file.proofs if (p.runtime, p.target, p.key) == (runtime, target, key))
        return next(same, None)

    def runtime(self, name: str, key: str) -> Runtime | None:
        """What the runtime listed under that key, if it did."""
        return next((one.runtime for one in self._file.listed if (one.runtime.name, one.key) == (name, key)), None)

    def keep(self, proof: Proof) -> None:
        """Remember a proof, in place of the one it repeats; the oldest are forgotten."""
        same = (proof.runtime, proof.target, proof.key)
        others = tuple(p for p in self._file.proofs if (p.runtime, p.target, p.key) != same)
        self._file.proofs = (*others, proof)[-_KEPT:]
        self._save()

    def forget(self, proof: Proof) -> None:
        """As if it had not been tried."""
        same = (proof.runtime, proof.target, proof.key)
        self._file.proofs = tuple(p for p in self._file.proofs if (p.runtime, p.target, p.key) != same)
        self._save()

    def keep_listed(self, runtimes: Sequence[tuple[str, Runtime]]) -> None:
        """Remember what runtimes listed, each with its key; one that had a problem is asked again next time."""
        good = tuple(Listed(key=key, runtime=runtime) for key, runtime in runtimes if not runtime.problem)
        names = {runtime.name for _, runtime in runtimes}
        kept = (*(one for one in self._file.listed if one.runtime.name not in names), *good)
        if kept != self._file.listed:
            self._file.listed = kept
            self._save()

    def _save(self) -> None:
        beside = self.path.with_suffix(".new")
        try:
            with beside.open("wb") as file:
                file.write(msgspec.json.encode(self._file))
                file.flush()
                os.fsync(file.fileno())  # a proof may take the whole box down with it
            beside.replace(self.path)
        except OSError as error:
            logger.warning("%s cannot be written (%s): devices will be proven again at the next start", beside, error)
