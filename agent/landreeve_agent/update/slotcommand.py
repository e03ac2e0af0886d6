"""Firmware slots behind an executable of the box (``firmware.slots_command``), so that RAUC, a boot loader's own tool
or anything else can stand behind it.

It is called as ``COMMAND status``, ``write SLOT FILE``, ``try SLOT``, ``confirm SLOT`` and ``reboot``, without a shell,
ends with 0 when it is done and prints one JSON object: for ``status`` the members of `SlotStatus`, else anything. One
that fails ends with another number and says why in ``{"error": "…"}`` or on standard error.
"""

import asyncio
import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import msgspec

from landreeve_agent.update.firmware import SlotsError, SlotStatus

ASK_S = 60.0
WRITE_S = 3600.0
_MOST_BYTES = 64 * 1024
_WORDS = 400


class _Said(msgspec.Struct, frozen=True):
    error: str = ""


@dataclass(frozen=True)
class CommandSlots:
    """The slots as ``command`` answers for them; a member that does not answer in time is ended."""

    command: tuple[str, ...]
    ask_s: float = ASK_S
    write_s: float = WRITE_S

    async def status(self) -> SlotStatus:
        """How they stand."""
        said = await self._ask("status")
        try:
            status = msgspec.json.decode(said, type=SlotStatus)
        except msgspec.DecodeError as error:
            raise SlotsError(f"{self.command[0]} status answered what cannot be read: {error}") from error
        if missing := {status.booted, status.primary} - set(status.slots):
            raise SlotsError(f"{self.command[0]} status names slot {min(missing)!r}, which is not among its slots")
        return status

    async def write(self, slot: str, image: Path) -> None:
        """Put an image into a slot that does not run."""
        await self._ask("write", slot, str(image), within_s=self.write_s)

    async def try_once(self, slot: str) -> None:
        """Boot it next."""
        await self._ask("try", slot)

    async def confirm(self, slot: str) -> None:
        """From now on this one boots."""
        await self._ask("confirm", slot)

    async def reboot(self) -> None:
        """Boot the system."""
        await self._ask("reboot")

    async def _ask(self, *words: str, within_s: float = 0.0) -> bytes:
        within_s = within_s or self.ask_s
        name = f"{self.command[0]} {words[0]}"
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command, *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise SlotsError(f"{name} cannot be started: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(within_s):
                out, words_said = await process.communicate()
        except TimeoutError:
            raise SlotsError(f"{name} did not end within {within_s:.0f} s") from None
        finally:
            await _end(process)
        if process.returncode:
            raise SlotsError(f"{name} ended with {process.returncode}: {_why(out, words_said)}")
        if len(out) > _MOST_BYTES:
            raise SlotsError(f"{name} answered {len(out)} bytes; at most {_MOST_BYTES} are read")
        return out


def slots_of(command: str) -> CommandSlots | None:
    """The slots behind a setting; None when it is empty. `ValueError` when it is no command line."""
    words = tuple(shlex.split(command))
    return CommandSlots(words) if words else None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _why(out: bytes, words: bytes) -> str:
    with contextlib.suppress(msgspec.DecodeError):
        if said := msgspec.json.decode(out, type=_Said).error:
            return said[:_WORDS]
    return " ".join(words.decode(errors="replace").split())[-_WORDS:] or "it does not say why"
