"""Devices that come, go and break while the site runs: noticed from files, told once, and proven again."""

import asyncio
import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from landreeve.wire.messages import Event
from landreeve_agent.hardware.inventory import Accelerator, Runtime
from landreeve_agent.hardware.override import BadOverrideError
from landreeve_agent.hardware.probe import read_box
from landreeve_agent.hardware.prove import Candidate, Ran
from landreeve_agent.hardware.room import HardwareRoom
from landreeve_agent.hardware.survey import Survey
from landreeve_agent.hardware.watch import changes

from tests.fakes.box_tree import expand, load

NPU = "sys/class/accel/accel0"


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A Meteor Lake laptop with GPU and NPU, both usable."""
    expand(load("meteor-lake"), tmp_path / "root")
    return tmp_path / "root"


class Runtimes:
    """Answers for the runtimes, and counts how often each was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.targets: tuple[str, ...] = ("CPU", "GPU", "NPU")

    def __call__(self, names: object, *, stop: Callable[[], bool]) -> tuple[Runtime, ...]:
        del stop
        assert isinstance(names, list)
        self.asked += names
        devices = tuple(sorted(target.lower() for target in self.targets))
        return tuple(
            Runtime(name=name, version="1", devices=devices, providers=self.targets)
            if name == "openvino"
            else Runtime(name=name, problem="not installed")
            for name in names
        )


class Children:
    """In place of proving: every device works, except those named in ``broken``, which fall back."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.started: list[str] = []

    def __call__(self, candidate: Candidate) -> list[str]:
        self.started.append(candidate.target)
        where = "CPU" if candidate.target in self.broken else candidate.target
        told = msgspec.json.encode(Ran(where=(where,), difference=0.0)).decode()
        return [sys.executable, "-c", f"print({told!r})"]


class Site:
    """A hardware room over a fake tree."""

    def __init__(self, root: Path, memory: Path, override: str = "") -> None:
        self.runtimes, self.children = Runtimes(), Children()
        self.used: dict[str, str] = {}
        self.told: list[Event] = []
        self.stopped = False
        survey = Survey(
            memory, root, override, stop=lambda: self.stopped, ask=self.runtimes, command=self.children,
        )  # fmt: skip
        self.room = HardwareRoom(survey, 0.05, 0.0, used=lambda: self.used, tell=self.tell)

    async def tell(self, event: Event) -> None:
        self.told.append(event)

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():  # noqa: ASYNC110 - files and lists have no event
                await asyncio.sleep(0.02)

    def names(self) -> list[str]:
        return [f"{event.name} {event.cause}" for event in self.told]


@pytest.fixture
def site(laptop: Path, tmp_path: Path) -> Site:
    return Site(laptop, tmp_path / "hardware.json")


async def test_everything_is_proven_once_and_told_in_one_sentence(site: Site) -> None:
    running = asyncio.create_task(site.room.run())
    await site.until(lambda: bool(site.told))
    running.cancel()
    assert site.names() == ["hardware.proven proven"]
    assert site.told[0].sentence == "Models can run here on: CPU with openvino; GPU with openvino; NPU with openvino."
    assert site.told[0].data["hardware"]["kind"] == "GPU"
    assert (await site.room.inventory()).kind == "GPU"


async def test_what_is_listed_and_does_not_work_is_told_with_its_cause(site: Site) -> None:
    site.children.broken = {"NPU"}
    running = asyncio.create_task(site.room.run())
    await site.until(lambda: len(site.told) == 2)
    running.cancel()
    refused = site.told[0]
    assert (refused.name, refused.cause, refused.severity) == ("hardware.refused", "silent_fallback", "warning")
    assert refused.sentence == "openvino cannot be used on NPU: it ran on CPU instead."


async def test_after_a_restart_nothing_is_asked_run_or_told_again(site: Site, laptop: Path, tmp_path: Path) -> None:
    await asyncio.to_thread(site.room.survey.study)
    again = Site(laptop, tmp_path / "hardware.json")
    found = await asyncio.to_thread(again.room.survey.study)
    assert again.children.started == []
    assert "openvino" not in again.runtimes.asked
    assert found.kind == "GPU"


async def test_a_lost_device_is_told_at_once_with_the_models_that_ran_on_it(site: Site, laptop: Path) -> None:
    running = asyncio.create_task(site.room.run())
    await site.until(lambda: bool(site.told))
    site.used = {"demand": "NPU · openvino · fp16 · 1 thread", "churn": "CPU · onnxruntime · fp32 · 1 thread"}
    (laptop / NPU).rename(laptop / "unplugged")
    await site.until(lambda: "hardware.changed vanished" in site.names())
    lost = site.told[-1]
    assert (lost.severity, lost.subject, lost.data["models"]) == ("error", "pci:0000:00:0b.0", ["demand"])
    assert lost.sentence == "Intel NPU (Meteor Lake) (0000:00:0b.0) is gone. demand ran on it."
    assert [a["kind"] for a in lost.data["hardware"]["accelerators"]] == ["gpu"]
    (problem,) = site.room.problems
    assert problem.startswith("Intel NPU (Meteor Lake) cannot be used (gone); demand ran on it. Check its seat")
    assert all(proof.device != "npu" or not proof.ok for proof in (await site.room.inventory()).proofs)
    site.children.started.clear()
    (laptop / "unplugged").rename(laptop / NPU)
    await site.until(lambda: "hardware.changed appeared" in site.names() and "NPU" in site.children.started)
    assert site.room.problems == ()
    running.cancel()


async def test_a_device_that_comes_back_within_a_moment_is_not_told(
    site: Site, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landreeve_agent.hardware.room._SETTLE_S", 0.2)
    running = asyncio.create_task(site.room.run())
    await site.until(lambda: bool(site.told))
    (laptop / NPU).rename(laptop / "unplugged")
    await asyncio.sleep(0.1)
    (laptop / "unplugged").rename(laptop / NPU)
    await asyncio.sleep(0.6)
    running.cancel()
    assert [event for event in site.told if event.cause == "vanished"] == []


async def test_another_device_of_the_kind_keeps_its_models_going(site: Site, laptop: Path) -> None:
    second = laptop / "sys/bus/pci/devices/0000:03:00.0"
    shutil.copytree(laptop / "sys/bus/pci/devices/0000:00:02.0", second, symlinks=True)
    running = asyncio.create_task(site.room.run())
    await site.until(lambda: bool(site.told))
    site.used = {"demand": "GPU · openvino · fp16 · 1 thread"}
    shutil.rmtree(second)
    await site.until(lambda: "hardware.changed vanished" in site.names())
    running.cancel()
    assert site.room.problems == ()
    assert next(e for e in site.told if e.cause == "vanished").severity == "warning"


async def test_what_the_command_line_proved_is_adopted(site: Site, laptop: Path, tmp_path: Path) -> None:
    site.children.broken = {"NPU"}
    running = asyncio.create_task(site.room.run())
    await site.until(lambda: len(site.told) == 2)
    other = Site(laptop, tmp_path / "hardware.json")
    await asyncio.to_thread(other.room.survey.study, lambda candidate: candidate.target == "NPU")
    await site.until(lambda: len(site.told) == 3)
    running.cancel()
    assert site.told[-1].name == "hardware.proven"


async def test_a_closing_site_waits_for_no_device(site: Site) -> None:
    site.stopped = True
    site.children = Children()
    assert (await asyncio.to_thread(site.room.survey.study)).proofs == ()


def test_a_changed_cpuset_changes_the_budget_and_says_so(tmp_path: Path) -> None:
    expand(load("container-v2"), tmp_path)
    before = read_box(tmp_path)
    (tmp_path / "sys/fs/cgroup/shop.slice/cpu.max").write_text("100000 100000")
    (change,) = changes(before, read_box(tmp_path))
    assert (change.what, change.sentence) == ("budget", "This box may use 1 thread now, it was 2.")


def test_loading_a_corals_firmware_changes_it_and_is_no_new_device(tmp_path: Path) -> None:
    for name in ("before", "after"):
        expand(load(f"coral-usb-{name}"), tmp_path / name)
    before, after = read_box(tmp_path / "before"), read_box(tmp_path / "after")
    (change,) = changes(before, after)
    assert change.what == "changed"
    assert "node /dev/bus/usb/002/010 → /dev/bus/usb/002/009" in change.sentence


def test_a_device_that_stops_being_usable_says_why(tmp_path: Path) -> None:
    for name in ("good", "mismatch"):
        expand(load(f"hailo-8-{name}"), tmp_path / name)
    (change,) = changes(read_box(tmp_path / "good"), read_box(tmp_path / "mismatch"))
    assert change.sentence.startswith(
        "Hailo-8 (0001:01:00.0) cannot be used any more: driver 4.20.0 and library 4.21.0"
    )


def test_heat_and_busy_time_are_no_change(laptop: Path) -> None:
    before = read_box(laptop)
    (laptop / "sys/bus/pci/devices/0000:00:0b.0/npu_busy_time_us").write_text("999999")
    (laptop / "sys/class/thermal/thermal_zone9/temp").write_text("40000")
    assert changes(before, read_box(laptop)) == ()


def test_an_override_has_the_last_word_and_nothing_is_proven(laptop: Path, tmp_path: Path) -> None:
    file = tmp_path / "override.json"
    file.write_text('{"threads": 1, "accelerators": [], "cpu": {"model": "a small one"}, "runtimes": []}')
    site = Site(laptop, tmp_path / "m.json", str(file))
    found = site.room.survey.study()
    assert (found.threads, found.accelerators, found.cpu.model, found.cpu.logical_cores) == (1, (), "a small one", 22)
    assert (site.runtimes.asked, site.children.started, found.override) == ([], [], str(file))


async def test_editing_the_override_plays_a_device_that_comes(laptop: Path, tmp_path: Path) -> None:
    file = tmp_path / "override.json"
    file.write_text('{"accelerators": [], "runtimes": []}')
    site = Site(laptop, tmp_path / "m.json", str(file))
    running = asyncio.create_task(site.room.run())
    await site.room.inventory()
    gpu = Accelerator(id="pci:1", kind="gpu", vendor="x", name="a GPU", usable=True)
    file.write_bytes(msgspec.json.encode({"accelerators": [gpu], "runtimes": []}))
    await site.until(lambda: "hardware.changed appeared" in site.names())
    running.cancel()


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "truncated"), ('{"gpus": 1}', "an inventory has no gpus"), ('{"threads": "x"}', "Expected `int`")],
)
async def test_a_bad_override_is_shown_and_left_out(text: str, words: str, laptop: Path, tmp_path: Path) -> None:
    file = tmp_path / "override.json"
    file.write_text(text)
    site = Site(laptop, tmp_path / "m.json", str(file))
    with pytest.raises(BadOverrideError, match=words):
        site.room.survey.glance()
    assert site.room.threads == 22
    assert words in site.room.problems[0]


async def test_a_box_that_cannot_be_read_is_born_all_the_same(site: Site) -> None:
    def broken(names: object, *, stop: object) -> tuple[Runtime, ...]:
        raise ValueError("a file no kernel writes")

    site.room.survey = dataclasses.replace(site.room.survey, ask=broken)
    with pytest.raises(ValueError, match="no kernel writes"):
        await site.room.run()
    assert (await site.room.document())["text"].startswith("unknown processor")
