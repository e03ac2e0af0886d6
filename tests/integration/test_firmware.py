"""Firmware from push to confirmed slot: a real hub, a real agent, a real executable, and boots that are kill -9."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.slots import Board
from tests.integration.test_agent_update import Fleet


class Box:
    """A site whose agent dies with each boot of its board, and comes up again with the slot the boot loader chose."""

    def __init__(self, root: Path) -> None:
        self.fleet = Fleet(root)
        self.board = Board.make(root / "board")
        self.ill = b""

    def power(self) -> None:
        """What a board does when it is switched on: a slot, and from it the agent."""
        flags = {"console.port": "0", "serving.port": "0", "firmware.slots_command": str(self.board.command)}
        options = [part for name, value in flags.items() for part in ("--set", f"{name}={value}")]
        child = self.fleet.start("landreeve_agent", "--state", str(self.fleet.site), "run", *options)
        (self.board.folder / "agent.pid").write_text(str(child.pid))

    def look(self, rollout: str) -> dict[str, Any] | None:
        """The rollout once it has ended; meanwhile the board boots when it was asked to."""
        if self.board.asked:
            self.fleet.children[-1].wait(10)  # killed by the executable
            trying = self.board.say("trying")
            self.board.boot(comes_up=not trying or self.board.image(trying) != self.ill)
            self.power()
        row = self.fleet.rollout(rollout)
        return None if row["state"] in {"RUNNING", "ROLLING_BACK"} else row

    def roll_out(self, image: Path) -> dict[str, Any]:
        hub = self.fleet.hub
        pushed = hub("firmware", "push", str(image))
        hub("model", "approve", pushed["digest"], "--emergency", "a test has one person only")
        plan = json.dumps({"probation": {"max_s": 60.0}})
        started = hub("rollout", "start", f"firmware@{pushed['version']}", "--plan", plan)
        hub("rollout", "approve", started["id"], "--emergency", "a test has one person only")
        row: dict[str, Any] = self.fleet.until("the end of the rollout", lambda: self.look(started["id"]))
        return row


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    try:
        yield made
    finally:
        made.fleet.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the slots' executable is for a POSIX shell, and boots are Linux's")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_image_reaches_the_other_slot_is_confirmed_and_one_that_does_not_boot_goes_back(
    box: Box, tmp_path: Path
) -> None:
    box.fleet.open(keep=box.power)
    one, two = tmp_path / "one.img", tmp_path / "two.raucb"
    one.write_bytes(b"one" * 50_000)
    two.write_bytes(b"two" * 50_000)
    done = box.roll_out(one)
    assert done["state"] == "FINISHED", f"{done}\n{box.fleet.said()}"
    assert (box.board.say("booted"), box.board.say("primary"), box.board.say("trying")) == ("B", "B", "")
    assert box.board.image() == one.read_bytes()

    box.ill = two.read_bytes()
    done = box.roll_out(two)
    assert done["state"] == "ROLLED_BACK", f"{done}\n{box.fleet.said()}"
    assert "did not come up" in str(done)
    assert (box.board.say("booted"), box.board.say("primary"), box.board.say("trying")) == ("B", "B", "")
    assert box.board.image() == one.read_bytes()
