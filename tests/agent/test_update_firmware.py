"""Firmware as a component, over a real executable that keeps two slots in files, and boots that end every process."""

import asyncio
import contextlib
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature
from landreeve.wire.strategy import Strategy
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.update.firmware import FirmwareEffects, Slots, SlotsError, SlotStatus
from landreeve_agent.update.install import Installer
from landreeve_agent.update.itself import Health
from landreeve_agent.update.machine import effect_of
from landreeve_agent.update.runner import Options, Runner
from landreeve_agent.update.slotbook import BOOK_FILE, MOST_BOOTS, Book
from landreeve_agent.update.slotcommand import CommandSlots, slots_of
from landreeve_agent.update.standing import FIRMWARE, TERMINAL, Phase, State

from tests.fakes.slots import Board
from tests.fakes.update_ports import (
    FakeEvidence,
    FakeFetcher,
    FakePreflight,
    FakeVerifier,
    FakeWorker,
    Hub,
    MortalDatabase,
    Reaper,
    document,
    wanted,
)

NOW = datetime(2026, 11, 29, 3, 0, tzinfo=UTC)
NAME = "firmware"
WELL = Health(connected=True, serving=True)


def image(version: str) -> Packed:
    config = ReleaseConfig(
        model=NAME,
        family=FIRMWARE,
        component=FIRMWARE,
        created="2026-11-29T03:00:00Z",
        signature=Signature(inputs=(), output=""),
        gates=Gates(metrics={}),
        lineage=Lineage(),
    )
    return pack({"system.img": content(version), "card.md": f"# {version}".encode()}, config)


def content(version: str) -> bytes:
    return f"image {version} ".encode() * 500


B, C = image("B"), image("C")


@dataclass(frozen=True)
class Watched:
    """The real slots; the agent may die before and after each call."""

    slots: Slots
    reaper: Reaper

    async def status(self) -> SlotStatus:
        return await self.slots.status()

    async def write(self, slot: str, image: Path) -> None:
        await self.reaper.step("write begins")
        await self.slots.write(slot, image)
        await self.reaper.step("write ends")

    async def try_once(self, slot: str) -> None:
        await self.slots.try_once(slot)
        await self.reaper.step("try")

    async def confirm(self, slot: str) -> None:
        await self.slots.confirm(slot)
        await self.reaper.step("confirm")

    async def reboot(self) -> None:
        await self.reaper.step("reboot")
        await self.slots.reboot()


class Site:
    """A box with slots. ``ill`` images never come up, ``lonely`` ones do not reach the hub; ``power`` says that a kill
    is a power cut, after which the boot loader chooses again."""

    def __init__(self, root: Path, *, power: bool = False) -> None:
        self.root = root
        self.board = Board.make(root / "board")
        self.hub = Hub()
        for packed in (B, C):
            self.hub.add(packed)
        self.desired = document(0)
        self.ill: set[bytes] = set()
        self.lonely: set[bytes] = set()
        self.power = power
        self.second_s = 0.0  # what a second of the agent's life counts
        self.kill_at = 0
        self.steps = 0
        self.slots: Slots | None = slots_of(str(self.board.command))

    def choose(self, _step: str) -> bool:
        self.steps += 1
        return self.steps == self.kill_at

    def uptime(self) -> float:
        return time.monotonic() * self.second_s

    def boot(self) -> None:
        trying = self.board.say("trying")
        self.board.boot(comes_up=not trying or self.board.image(trying) not in self.ill)

    async def live(self, until: Phase | None = None, most: int = 25) -> State:
        """Lives of the agent, one after another, until its update has come to that phase (or to any end)."""
        async with asyncio.timeout(60):
            for _ in range(most):
                state = await self._one_life(until)
                if state is not None:
                    return state
                if self.board.asked:
                    self.boot()
        raise AssertionError(f"it did not end in {most} lives")

    async def _one_life(self, until: Phase | None) -> State | None:
        reaper = Reaper(self.choose)
        database = MortalDatabase(self.root / "agent.db")
        database.reaper = reaper
        runner = self._runner(database, reaper)

        async def run() -> None:
            await runner.recover()
            await runner.on_desired(self.desired)
            await runner.run()

        life = asyncio.create_task(run())
        try:
            while not self.board.asked and not reaper.killed.is_set():
                view = runner.views.get(NAME)
                if view and self._is_end(view.state, until) and all(d.done() for d in runner._drives.values()):
                    return view.state
                await asyncio.sleep(0.002)
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            database.close()
        if reaper.killed.is_set() and self.power:
            self.boot()
        return None

    def _is_end(self, state: State, until: Phase | None) -> bool:
        at = state.phase is until if until else state.phase in TERMINAL - {Phase.IDLE}
        return (
            at
            and state.generation == msgspec.json.decode(self.desired.document)["generation"]
            and (state.phase not in TERMINAL or effect_of(state) is None)
        )

    def _runner(self, database: MortalDatabase, reaper: Reaper) -> Runner:
        blobs = BlobStore(self.root / "blobs", margin_bytes=0)
        fetcher = FakeFetcher(self.hub, blobs, reaper)

        async def health() -> Health:
            return Health(connected=False, serving=True) if self.board.image() in self.lonely else WELL

        slots = Watched(self.slots, reaper) if self.slots else None
        effects = FirmwareEffects(
            Installer(fetcher, blobs, self.root / "firmware" / "releases", "0.1.0"),
            slots,
            Book(self.root / "firmware"),
            health,
            lambda: NOW,
            lambda: "the kernel's",
            self.uptime,
        )
        return Runner(
            database,
            Outbox(database),
            FakeVerifier(self.hub),
            fetcher,
            blobs,
            self.root / "models",
            FakeWorker(self.hub, reaper),
            FakePreflight(self.hub, reaper),
            FakeEvidence(self.hub, reaper),
            lambda: NOW,
            agent_version="0.1.0",
            options=Options(probation_every_s=0.005, retry_s=0.0, restore_every_s=0.01),
            kinds={FIRMWARE: effects},
        )

    def order(self, generation: int, packed: Packed, version: str, **changes: Any) -> None:
        model = wanted(packed, version, f"r{generation}", component=FIRMWARE)
        self.desired = document(generation, msgspec.structs.replace(model, model=NAME, **changes))

    def phases(self) -> list[str]:
        """What the journal says it went through."""
        if not (self.root / "agent.db").exists():
            return []
        with contextlib.closing(sqlite3.connect(self.root / "agent.db")) as db:
            there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'transitions'").fetchone()
            rows = db.execute("SELECT state FROM transitions ORDER BY n").fetchall() if there else []
            return [state for (state,) in rows]

    @property
    def stands(self) -> tuple[str, str, str]:
        """What runs, whether that is what boots, and what is tried."""
        say = self.board.say
        settled = "settled" if say("booted") == say("primary") else "unsettled"
        return self.board.image().decode()[:7].strip(), settled, say("trying")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_new_firmware_is_written_beside_tried_once_proven_and_confirmed(site: Site) -> None:
    site.order(1, B, "B")
    assert (await site.live(Phase.COMMITTED)).cause == "probation_passed"
    assert site.stands == ("image B", "settled", "")
    assert site.board.image("A") == b"base"
    assert site.board.say("boots") == "1"
    site.order(2, C, "C")
    await site.live(Phase.COMMITTED)
    assert site.stands == ("image C", "settled", "")
    assert site.board.image("B") == content("B")


async def test_firmware_that_does_not_come_up_is_told_by_the_old_one_and_tried_once_only(site: Site) -> None:
    site.ill.add(content("B"))
    site.order(1, B, "B")
    state = await site.live(Phase.ROLLED_BACK)
    assert state.cause == "did_not_boot"
    assert "the boot loader went back to slot A" in state.sentence
    assert site.stands == ("base", "settled", "")
    assert site.board.say("boots") == "1"
    site.ill.clear()  # the same again under a new rollout is written and tried anew
    site.board.folder.joinpath("B.img").write_bytes(b"rotten")
    site.order(2, B, "B")
    await site.live(Phase.COMMITTED)
    assert site.stands == ("image B", "settled", "")


async def test_firmware_that_does_not_reach_the_hub_goes_back_to_the_one_before(site: Site) -> None:
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    site.lonely.add(content("C"))
    site.second_s = 10_000.0
    site.order(2, C, "C")
    state = await site.live(Phase.ROLLED_BACK)
    assert state.cause == "not_reconnected"
    assert site.stands == ("image B", "settled", "")


async def test_firmware_that_falls_back_while_it_proves_itself_is_told(site: Site) -> None:
    site.lonely.add(content("B"))
    site.order(1, B, "B")
    life = asyncio.create_task(site.live())
    async with asyncio.timeout(20):
        while Phase.PROBATION not in site.phases():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    site.board.folder.joinpath("asked").touch()  # its watchdog boots the box
    state = await life
    assert (state.phase, state.cause) == (Phase.ROLLED_BACK, "fell_back")
    assert site.stands == ("base", "settled", "")


async def test_hub_orders_firmware_back_to_the_one_in_the_other_slot_without_fetching_it(site: Site) -> None:
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    site.order(2, C, "C")
    await site.live(Phase.COMMITTED)
    site.hub.blobs.clear()
    site.order(3, B, "B", action="rollback")
    assert (await site.live(Phase.COMMITTED)).cause == "ordered_back"
    assert site.stands == ("image B", "settled", "")


async def test_slot_whose_writing_was_cut_is_not_taken_for_what_it_held(site: Site) -> None:
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    site.order(2, C, "C")
    await site.live(Phase.COMMITTED)
    site.hub.add(image("D"))
    site.order(3, image("D"), "D")
    site.choose = lambda step: step == "write begins"  # type: ignore[method-assign]
    await site._one_life(Phase.COMMITTED)
    assert site.board.image("B") == content("B")
    site.board.folder.joinpath("B.img").write_bytes(b"torn")
    site.choose = lambda _step: False  # type: ignore[method-assign]
    site.order(4, B, "B", action="rollback")
    await site.live(Phase.COMMITTED)
    assert site.stands == ("image B", "settled", "")
    assert site.board.image() == content("B")


async def test_slot_is_confirmed_before_the_update_is_called_done(site: Site) -> None:
    """A power cut right after the commit must find the proven slot to be the one that boots."""
    site.order(1, B, "B")
    site.choose = lambda step: step == "commit" and site.phases()[-1:] == [Phase.COMMITTED]  # type: ignore[method-assign]
    while Phase.COMMITTED not in site.phases():
        await site._one_life(None)
        if site.board.asked:
            site.boot()
    assert site.stands == ("image B", "settled", "")


async def test_box_without_slots_says_so(site: Site) -> None:
    site.slots = None
    site.order(1, B, "B")
    state = await site.live(Phase.REJECTED)
    assert state.cause == "no_firmware"
    assert "firmware.slots_command is not set" in state.sentence


async def test_slots_that_are_not_ours_to_overwrite_are_left_alone(site: Site) -> None:
    site.board.folder.joinpath("trying").write_text("B")
    site.board.folder.joinpath("tries").write_text("1")
    site.board.boot()  # someone else tries B
    site.order(1, C, "C")
    assert (await site.live(Phase.REJECTED)).cause == "slots_unsettled"
    assert site.board.image("A") == b"base"


async def test_firmware_has_no_traffic_to_share(site: Site) -> None:
    site.order(1, B, "B", strategy=Strategy(kind="canary", shares=(0.5, 1.0)))
    state = await site.live(Phase.REJECTED)
    assert (state.cause, "only a model shares" in state.sentence) == ("bad_strategy", True)


async def test_reboot_that_is_refused_changes_nothing(site: Site) -> None:
    site.board.folder.joinpath("stuck").touch()
    site.order(1, B, "B")
    state = await site.live(Phase.ROLLED_BACK)
    assert state.cause == "cannot_switch"
    assert "the system bus is away" in state.sentence
    assert site.stands == ("base", "settled", "")


async def test_slot_that_was_proven_and_no_longer_comes_up_does_not_keep_the_box_booting(site: Site) -> None:
    """Committed, and the confirmed slot dies later: the boot loader's other slot serves on."""
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    site.board.folder.joinpath("booted").write_text("A")  # B rotted; the boot loader took A by itself
    keep = Board.boot
    boots_before = int(site.board.say("boots"))
    try:
        Board.boot = lambda board, **_: (keep(board), board._keep("booted", "A"))[0]  # type: ignore[method-assign,assignment]
        for _ in range(MOST_BOOTS + 3):
            life = asyncio.create_task(site._one_life(None))
            await asyncio.wait({life}, timeout=0.5)
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            if site.board.asked:
                site.boot()
    finally:
        Board.boot = keep  # type: ignore[method-assign]
    assert int(site.board.say("boots")) - boots_before == MOST_BOOTS


async def steps_of_a_whole_update(root: Path) -> int:
    site = Site(root)
    site.order(1, B, "B")
    await site.live(Phase.COMMITTED)
    return site.steps


def kills(stride: int, *marks: Any) -> list[Any]:
    """The process alone or the whole box dies; the firmware that is ordered comes up or does not."""
    cases = ((power, ill) for power in (False, True) for ill in (False, True))
    return [
        pytest.param(
            power, ill, stride, marks=marks, id=f"{'power' if power else 'process'}-{'bad' if ill else 'good'}-{stride}"
        )
        for power, ill in cases
    ]


@pytest.mark.parametrize(("power", "ill", "stride"), [*kills(6), *kills(1, pytest.mark.slow)])
async def test_killed_at_any_step_it_ends_in_a_slot_that_boots(
    tmp_path: Path, power: bool, ill: bool, stride: int
) -> None:
    """Every step in the slow suite, every sixth else, each case beginning at another one."""
    ends: dict[int, tuple[str, str]] = {}
    whole = await steps_of_a_whole_update(tmp_path / "whole")
    assert whole > 25
    for kill_at in range(1 + (2 * power + ill) % stride, whole + 1, stride):
        site = Site(tmp_path / str(kill_at), power=power)
        site.ill = {content("B")} if ill else set()
        site.kill_at = kill_at
        site.order(1, B, "B")
        state = await site.live()
        assert (site.stands[1], site.stands[2]) == ("settled", ""), (kill_at, state)
        assert int(site.board.say("boots")) <= 4, kill_at
        ends[kill_at] = (state.cause, site.stands[0])
    proven, back = ("probation_passed", "image B"), {("fell_back", "base"), ("did_not_boot", "base")}
    if ill:
        assert set(ends.values()) == {("did_not_boot", "base")}
    elif not power:
        assert set(ends.values()) == {proven}
    else:  # a cut while it is on its one try leads back: nobody can tell it from a crash
        assert set(ends.values()) <= {proven, *back}
        assert proven in ends.values()


# --- the executable


async def test_executable_that_fails_hangs_or_lies_is_told_in_its_own_words(tmp_path: Path) -> None:
    async def says(text: str, words: str, within_s: float = 20.0) -> None:
        path = tmp_path / "slots"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        with pytest.raises(SlotsError, match=words):
            await CommandSlots((str(path),), ask_s=within_s).status()

    await says("echo 'no bus' >&2; exit 3", "status ended with 3: no bus")
    await says('echo \'{"error":"slot B is broken"}\'; exit 1', "slot B is broken")
    await says("exec sleep 60", "did not end within 0 s", 0.2)
    await says("echo nonsense", "cannot be read")
    await says('echo \'{"booted":"C","primary":"A","slots":["A","B"]}\'', "slot 'C', which is not among")
    with pytest.raises(SlotsError, match="cannot be started"):
        await CommandSlots((str(tmp_path / "nothing"),)).status()
    assert slots_of("") is None
    assert slots_of("sudo -n '/opt/my slots'") == CommandSlots(("sudo", "-n", "/opt/my slots"))


def test_damaged_book_of_slots_names_nothing(tmp_path: Path) -> None:
    (tmp_path / BOOK_FILE).write_bytes(b"\xff{")
    assert Book(tmp_path).read().written == {}
