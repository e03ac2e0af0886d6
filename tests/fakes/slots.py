"""A box with two firmware slots: a real executable that keeps them in files, and the boot loader that chooses.

The executable is plain sh, as a board's own would be. ``reboot`` leaves a mark; who drives the box sees it, kills the
agent and lets the boot loader choose. A try is counted before the slot is booted, as RAUC, systemd-boot and U-Boot do.
"""

from dataclasses import dataclass
from pathlib import Path

SCRIPT = """#!/bin/sh
set -eu
cd "$(dirname "$0")"
case "$1" in
status)
    printf '{"booted":"%s","primary":"%s","trying":"%s","boot":"boot-%s","slots":["A","B"]}\\n' \\
        "$(cat booted)" "$(cat primary)" "$(cat trying)" "$(cat boots)" ;;
write)
    [ "$2" != "$(cat booted)" ] || { echo '{"error":"slot '"$2"' runs"}'; exit 1; }
    : > "$2.img"; cp "$3" "$2.new"; mv "$2.new" "$2.img"; echo '{}' ;;
try)
    echo "$2" > trying.new; echo 1 > tries; mv trying.new trying; echo '{}' ;;
confirm)
    echo "$2" > primary.new; mv primary.new primary; : > trying; echo 0 > tries; echo '{}' ;;
reboot)
    [ ! -e stuck ] || { echo 'the system bus is away' >&2; exit 4; }
    : > asked; [ ! -e agent.pid ] || kill -9 "$(cat agent.pid)"; echo '{}' ;;
*)
    echo "what is $1?" >&2; exit 2 ;;
esac
"""


@dataclass(frozen=True)
class Board:
    """The box in ``folder``. ``command`` is its executable."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, base: bytes = b"base") -> "Board":
        folder.mkdir(parents=True)
        board = cls(folder)
        for name, text in {"booted": "A", "primary": "A", "trying": "", "tries": "0", "boots": "0"}.items():
            (folder / name).write_text(text, encoding="ascii")
        (folder / "A.img").write_bytes(base)
        (folder / "B.img").write_bytes(b"")
        board.command.write_text(SCRIPT, encoding="ascii")
        board.command.chmod(0o755)
        return board

    @property
    def command(self) -> Path:
        return self.folder / "slots"

    def say(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="ascii").strip()

    def image(self, slot: str = "") -> bytes:
        """What a slot holds; of the running one by default."""
        return (self.folder / f"{slot or self.say('booted')}.img").read_bytes()

    @property
    def asked(self) -> bool:
        """Whether someone asked for a boot."""
        return (self.folder / "asked").exists()

    def boot(self, *, comes_up: bool = True) -> None:
        """One boot: of the slot that is tried while it has tries, else of the primary one. One that does not come up
        is left for the primary at once, by its watchdog."""
        trying, tries = self.say("trying"), int(self.say("tries"))
        slot = self.say("primary")
        if trying and tries > 0:
            self._keep("tries", str(tries - 1))
            slot = trying if comes_up else slot
        elif trying:
            self._keep("trying", "")
        self._keep("booted", slot)
        self._keep("boots", str(int(self.say("boots")) + 1))
        (self.folder / "asked").unlink(missing_ok=True)

    def _keep(self, name: str, text: str) -> None:
        beside = self.folder / f"{name}.b"
        beside.write_text(text, encoding="ascii")
        beside.replace(self.folder / name)
