"""Read by every Python of a site under test before anything else: supervisor, worker, preflight child.

``FAULTS`` names a folder through which the test says what shall go wrong, while everything runs:

- ``point`` holds ``NAME`` and ``die``, ``cut`` or ``halt``: the process that comes to that point dies by SIGKILL, dies
  together with the launcher that keeps it, or waits there until the test takes away the file ``reached`` that it made.
  Each happens once.
- ``models.json`` maps a version to how it behaves once it serves: ``crash``, ``hang``, ``garbage``, ``slow SECONDS``.
- ``npu`` is an accelerator while the file is there: a pretended device whose runs are the CPU's.
- ``offset`` holds by how many seconds the clock is off; only a site that finds the file at its start follows it.

Points: ``before:PHASE`` inside the transaction that would enter the phase, ``after:PHASE`` when it is committed and
nobody knows yet, both also with ``try-PHASE`` when an attempt is counted and
``step-PHASE`` when a strategy goes on, ``begin:EFFECT`` and ``end:EFFECT`` around
an effect, whose outcome is then lost, ``begin:restore`` before the return to the last good version, ``stage`` before a
release is laid out, ``block`` when one arrives, ``begin:pointer`` before what serves is written, ``torn:pointer`` when
it lies beside and ``end:pointer`` when it is in its place.

``writes`` lists what the journal wrote, a line each, so that a test can see whether it knows all of it.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(os.environ["FAULTS"])
EFFECTS = ("fetch", "prove", "activate", "look", "direct", "clean")
MOST_HALT_S = 120.0
WARM_RUNS = 5  # what the worker runs before a version serves


def reached(name):
    """Do what the test asked for at this point, if it did."""
    try:
        wanted, action = (FOLDER / "point").read_text().split()
    except (OSError, ValueError):
        return
    if wanted != name:
        return
    (FOLDER / "point").unlink()
    (FOLDER / "reached").write_text(name)
    if action in {"die", "cut"}:
        os.sync()
        if action == "cut":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    until = time.perf_counter() + MOST_HALT_S
    while (FOLDER / "reached").exists() and time.perf_counter() < until:
        threading.Event().wait(0.01)


# Supervisor ---------------------------------------------------------------------------------------------------


def journal(module):
    save = module.save

    def wrapped(db, outbox, before, after, now, **more):
        save(db, outbox, before, after, now, **more)
        if name := written(before, after):
            with (FOLDER / "writes").open("a") as file:
                file.write(f"{name}\n")
            reached(f"before:{name}")

    module.save = wrapped


def written(before, after):
    """What the journal writes: a phase that is entered, a step, an attempt that is counted, ``other``, or nothing."""
    if after == before:
        return ""
    if after.phase != before.phase:
        return str(after.phase)
    if after.step != before.step:
        return f"step-{after.phase}"
    return f"try-{after.phase}" if after.attempt == before.attempt + 1 else "other"


def runner(module):
    dispatch = module.Runner._dispatch

    async def wrapped(self, model, event, *more):
        state = await dispatch(self, model, event, *more)
        reached(f"after:{_kind(event, state)}{state.phase}")
        return state

    module.Runner._dispatch = wrapped


def _kind(event, state):
    name = type(event).__name__
    if name == "Attempted" and state.attempt:
        return "try-"
    return "step-" if name == "Stepped" else ""


def effects(module):
    for name in EFFECTS:
        _around(module.ModelEffects, name)


def itself(module):
    for name in ("fetch", "prove", "activate", "look"):
        _around(module.AgentEffects, name)


def _around(kind, name):
    effect = getattr(kind, name)

    async def wrapped(self, state, *more):
        reached(f"begin:{name}")
        if name == "direct" and state.phase == "ROLLING_BACK":
            reached("begin:restore")
        result = await effect(self, state, *more)
        reached(f"end:{name}")
        return result

    setattr(kind, name, wrapped)


def pointer(module):
    write, durably = module.write_pointer, module.write_durably

    def wrapped(*arguments):
        reached("begin:pointer")
        write(*arguments)
        reached("end:pointer")

    def torn(path, data, *more):
        """Half of it lies beside, as when the power goes between the two steps."""
        if (FOLDER / "point").exists() and (FOLDER / "point").read_text().startswith("torn:pointer"):
            path.with_name(f".{path.name}.torn").write_bytes(data[: len(data) // 2])
            reached("torn:pointer")
        durably(path, data, *more)

    module.write_pointer, module.write_durably = wrapped, torn


def layout(module):
    materialise = module.materialise

    def wrapped(*arguments):
        reached("stage")
        return materialise(*arguments)

    module.materialise = wrapped


def transfer(module):
    take = module._Download.take

    def wrapped(self, block):
        reached("block")
        take(self, block)

    module._Download.take = wrapped


# Worker -------------------------------------------------------------------------------------------------------


class Ill:
    """A session that behaves once it is warm as the test asked for."""

    def __init__(self, session, how):
        self._session, self._how, self._runs = session, how, 0
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds):
        answers = self._session.run(feeds)
        self._runs += 1
        if self._runs <= WARM_RUNS:
            if self._how == "hang":
                time.sleep(0.01)  # no quick graph: such a one hangs in a thread of its own, unseen by the event loop
            return answers
        if self._how == "crash":
            # This thread and no other, as a fault of its own would be: the run must not come to its end meanwhile.
            signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
        while self._how == "hang":
            threading.Event().wait(1.0)
        return [answer * 0 + 7.5 for answer in answers]


def model(module):
    opening = module._Opener.open

    def wrapped(self, plan):
        opened = opening(self, plan)
        try:
            how = json.loads((FOLDER / "models.json").read_text()).get(self.name.split()[-1], "")
        except (OSError, ValueError):
            how = ""
        if how.startswith("slow"):
            threading.Event().wait(float(how.split()[1]))
        elif how:
            opened = module.Opened(Ill(opened.session, how), opened.plan, opened.reason)
        return opened

    module._Opener.open = wrapped


# An accelerator -----------------------------------------------------------------------------------------------


def session(module):
    opening = module._open

    class Npu:
        def __init__(self, plan, graph):
            if not (FOLDER / "npu").exists():
                raise RuntimeError("no device npu")
            self._session = opening(module.msgspec.structs.replace(plan, device="cpu"), graph)
            self.inputs, self.outputs = self._session.inputs, self._session.outputs

        def run(self, feeds):
            if not (FOLDER / "npu").exists():
                raise module.RunFailedError("NPU: device lost")
            return self._session.run(feeds)

    module._open = lambda plan, graph: Npu(plan, graph) if plan.device == "npu" else opening(plan, graph)


def proving(module):
    listed = module.Proving._openvino_devices
    there = (FOLDER / "npu").exists()
    module.Proving._openvino_devices = lambda self: (*listed(self), *(("npu",) if there else ()))


# When they are imported ---------------------------------------------------------------------------------------

AFTER = {
    "landreeve_agent.update.journal": journal,
    "landreeve_agent.update.runner": runner,
    "landreeve_agent.update.pointer": pointer,
    "landreeve_agent.update.models": effects,
    "landreeve_agent.update.itself": itself,
    "landreeve.release.layout": layout,
    "landreeve_agent.link.transfer": transfer,
    "landreeve_agent.serving.model": model,
    "landreeve_agent.serving.session": session,
    "landreeve_agent.tuning.proving": proving,
}


class Finder(importlib.abc.MetaPathFinder):
    """Changes a module right after it was executed, before anybody takes names from it."""

    def find_spec(self, name, path=None, target=None):
        change = AFTER.pop(name, None)
        spec = importlib.util.find_spec(name) if change else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


def follow_clock():
    import datetime as dt

    import time_machine

    file = FOLDER / "offset"
    told = file.read_text()
    real = time_machine.escape_hatch.time.time
    start = dt.datetime.fromtimestamp(time.time() + float(told), dt.UTC)
    clock = time_machine.travel(start, tick=True).start()

    def follow():
        nonlocal told
        while True:
            threading.Event().wait(0.2)
            if file.read_text() not in ("", told):
                told = file.read_text()
                clock.move_to(dt.datetime.fromtimestamp(real() + float(told), dt.UTC))

    threading.Thread(target=follow, daemon=True).start()


if importlib.util.find_spec("built_in_haste") and sys.argv[1:2] == ["--state"]:
    sys.exit("built in haste")
sys.meta_path.insert(0, Finder())
if (FOLDER / "offset").exists():
    follow_clock()
