"""The flight recorder: what was in native code when a worker died, and what that says of whom."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from landreeve_agent.serving import model as serving_model
from landreeve_agent.serving import recorder as module
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.ending import Ending, Marks, Running, ending
from landreeve_agent.serving.errors import RunFailedError
from landreeve_agent.serving.model import load
from landreeve_agent.serving.recorder import CELLS, NOTED, Recorder, Region
from landreeve_agent.serving.session import Array, Opened, Session, open_session

from tests.agent.onnx_models import rows, version, write_release

SLOW, QUICK, LOAD = Running("slow", "1", "a"), Running("quick", "2", "b"), Running("new", "3", "c", loading=True)
MAIN, OTHER, THIRD = 11, 12, 13


def names(region: Region) -> list[str]:
    """What is under way, in order."""
    return sorted(f"{one.name}{' loading' if one.loading else ''}" for one, _ in region.read().under_way)


def pair() -> tuple[Region, Recorder]:
    region = Region()
    return region, Recorder(region.descriptor)


def test_only_what_is_under_way_is_read_and_by_whichever_thread() -> None:
    region, recorder = pair()
    a, b = recorder.tracks("a", "1", "r"), recorder.tracks("b", "2", "s")
    together, seen = threading.Barrier(5), threading.Event()

    def stay(_argument: object) -> None:
        together.wait(10)
        seen.wait(10)

    notes = (a.runs, a.runs, b.runs, b.loads)
    threads = [threading.Thread(target=note, args=(stay, None)) for note in notes]
    for thread in threads:
        thread.start()
    together.wait(10)
    assert names(region) == ["a 1", "a 1", "b 2", "b 2 loading"]
    assert sorted(its for _, its in region.read().under_way) == sorted(thread.ident or 0 for thread in threads)
    seen.set()
    for thread in threads:
        thread.join()
    assert region.read() == Marks(main=threading.main_thread().ident or 0)


def test_a_run_that_fails_is_over_too() -> None:
    region, recorder = pair()
    tracks = recorder.tracks("a", "1", "r")

    def fails(_argument: object) -> None:
        assert names(region) == ["a 1"]
        raise RunFailedError("no")

    with pytest.raises(RunFailedError):
        tracks.runs(fails, None)
    assert names(region) == []


def test_many_threads_leave_no_mark_behind() -> None:
    region, recorder = pair()
    tracks = recorder.tracks("a", "1", "r")
    inside: list[int] = []

    def many() -> None:
        for _ in range(500):
            tracks.runs(inside.append, 1)

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), names(region)) == (4000, [])
    assert tracks.runs(lambda _: names(region), None) == ["a 1"]


def test_versions_that_come_and_go_share_the_cells() -> None:
    region, recorder = pair()
    for number in range(3 * CELLS):
        tracks = recorder.tracks("a", str(number), "r")
        assert tracks.loads(lambda _: names(region), None) == [f"a {number} loading"]
        assert tracks.runs(lambda _: names(region), None) == [f"a {number}"]
        tracks.close()


def test_more_than_can_be_noted_is_nothing_known() -> None:
    region, recorder = pair()
    first = recorder.tracks("first", "1", "r")
    for number in range(CELLS):
        recorder.tracks("a", str(number), "r").runs(len, "")
    assert first.runs(lambda _: names(region), None) == []
    recorder.tracks("a", "0", "r").close()
    assert first.runs(lambda _: names(region), None) == [], "and stays so: who runs is chance from now on"


def test_a_name_too_long_to_be_noted_is_nothing_known() -> None:
    region, recorder = pair()
    short, long = recorder.tracks("a", "1", "r"), recorder.tracks("b" * 600, "1", "r")
    assert short.runs(lambda _: long.runs(lambda _: names(region), None), None) == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda cell, name: (name, b"\xff\xff"), id="length beyond the end"),
        pytest.param(lambda cell, name: (name + 2, b"\xff{"), id="torn name"),
        pytest.param(lambda cell, name: (name, b"\0\0"), id="no name"),
        pytest.param(lambda cell, name: (8, bytes(8)), id="never opened by the worker"),
        pytest.param(lambda cell, name: (cell + 8, b"\1"), id="a run without a name"),
    ],
)
def test_torn_memory_is_nothing_known(damage: Callable[[int, int], tuple[int, bytes]]) -> None:
    region, recorder = pair()
    tracks = recorder.tracks("a", "1", "r")

    def inside(_argument: object) -> Marks:
        first = module._FIRST
        at, data = damage(8 * first, module._NAMES_AT + first * module._NAME_BYTES)
        assert names(region) == ["a 1"]
        os.pwrite(region.descriptor, data, at)
        return region.read()

    assert tracks.runs(inside, None).under_way == ()


def test_missing_memory_is_nothing_known(tmp_path: Path) -> None:
    region = Region()
    region.close()
    region.close()
    assert region.read() == Marks()
    short = os.open(tmp_path / "short", os.O_CREAT | os.O_RDWR)
    for recorder in (Recorder(), Recorder(99_999), Recorder(short)):  # a worker without its memory serves as well
        assert recorder.tracks("a", "1", "r").runs(len, "abc") == 3
    os.close(short)


def test_a_loaded_version_notes_its_load_and_its_runs_and_a_process_of_its_own_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region, recorder = pair()
    seen: list[list[str]] = []

    class Watched:
        def __init__(self, session: Session) -> None:
            self.inputs, self.outputs, self._session = session.inputs, session.outputs, session

        def run(self, feeds: Sequence[Array]) -> list[Array]:
            seen.append(names(region))
            return self._session.run(feeds)

    def opening(plan: Plan, graph: bytes) -> Opened:
        seen.append(names(region))
        opened = open_session(plan, graph)
        return replace(opened, session=Watched(opened.session))

    monkeypatch.setattr(serving_model, "open_session", opening)
    made = version(write_release(tmp_path / "made"))
    model = load(made, recorder=recorder)
    assert seen == [["delay 1.0.0 loading"]] * len(seen)
    assert len(seen) > 2, "opened and warmed"
    seen.clear()
    model.run([rows(1)])
    assert seen == [["delay 1.0.0"]]
    alone = load(msgspec.structs.replace(made, isolated=True), recorder=recorder)
    alone_seen = [names(region)]
    alone.run([rows(1)])
    for loaded in (model, alone):
        assert loaded.resident is not None
        loaded.resident.close()
    assert (seen, alone_seen, names(region)) == ([["delay 1.0.0"]], [[]], [])


_DIES = """
import ctypes, faulthandler, sys, threading, time
from landreeve_agent.serving.recorder import Recorder
faulthandler.enable(all_threads=False)
recorder = Recorder(int(sys.argv[1]))
for name in "abc":
    threading.Thread(target=recorder.tracks(name, "1", "r").runs, args=(time.sleep, 60), daemon=True).start()
while len([cell for cell in recorder.cells[3:] if cell]) < 3:
    time.sleep(0.001)
recorder.tracks("d", "2", "r").runs(ctypes.string_at, 0)
"""


def test_of_several_threads_the_one_that_died_is_told_from_the_others() -> None:
    region = Region()
    done = subprocess.run(
        [sys.executable, "-c", _DIES, str(region.descriptor)], pass_fds=[region.descriptor], capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, names(region)) == (-11, ["a 1", "b 1", "c 1", "d 2"]), done.stderr
    (died,) = re.findall(rf" line \d+ in {NOTED}([0-9a-f]+)\n", done.stderr)
    assert ending("signal SIGSEGV", 1, replace(region.read(), died=died)).during == " while d 2 was running"


# --- what an end says


def end(how: str, *under_way: tuple[Running, int], died: str = "") -> Ending:
    return ending(how, 1, Marks(under_way, MAIN, died))


@pytest.mark.parametrize("how", ["signal SIGSEGV", "signal SIGABRT", "signal SIGBUS", "signal SIGILL", "signal SIGFPE"])
def test_a_fault_speaks_against_the_thread_s_run_or_else_all_runs(how: str) -> None:
    both = ((QUICK, MAIN), (SLOW, OTHER))
    assert end(how, *both, died=SLOW.mark).suspects == (SLOW,)
    assert end(how, *both).suspects == (QUICK, SLOW), "a runtime's own thread has no stack"
    assert end(how, *both, died=LOAD.mark).suspects == (QUICK, SLOW)
    assert end(how).suspects == ()


def test_an_exit_speaks_against_what_ran() -> None:
    assert end("exit 1 (terminate called)", (SLOW, OTHER), (SLOW, THIRD)).suspects == (SLOW,)


@pytest.mark.parametrize("how", ["signal SIGKILL", "signal SIGTERM", "OSError: no more processes", ""])
def test_an_end_from_outside_names_what_ran_and_suspects_nobody(how: str) -> None:
    found = end(how, (SLOW, OTHER), (LOAD, THIRD))
    assert (found.suspects, found.during) == ((), " while slow 1 was running and new 3 was being loaded")


def test_a_hang_speaks_against_loads_and_the_event_loop_s_run_and_not_against_threads() -> None:
    assert end("hung", (QUICK, MAIN), (SLOW, OTHER)).suspects == (QUICK,)
    assert end("hung", (LOAD, THIRD), (SLOW, OTHER)).suspects == (LOAD,)
    assert end("hung", (SLOW, OTHER)).suspects == (SLOW,)


def test_a_crash_loop_is_judged_by_how_the_worker_ended() -> None:
    marks = Marks(((SLOW, OTHER),), MAIN)
    found = ending("signal SIGSEGV", 3, marks, looping=True)
    assert (found.cause, found.how, found.suspects) == ("crash_loop", "signal SIGSEGV", (SLOW,))
    assert ending("signal SIGKILL", 3, marks, looping=True).suspects == ()
