"""Three airports, one year: the whole loop on real data, through the command lines and APIs any user has.

Environment: SPEED event hours a second (default 12; 0 = no waiting) · EXIT=1 leave at the end, 0 only if every
chapter happened · EVERY=k take every k-th departure · UNTIL end of the year · DEMO_DIR state (default .demo).
"""

import fcntl
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

# Until there is something to end, Ctrl-C just ends; loading the libraries takes a second or two.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, lambda number, _frame: os._exit(128 + number))

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import chapters  # noqa: E402
import scoreboard  # noqa: E402
from surface import StoryError  # noqa: E402
from world import Options, World  # noqa: E402

PLOT: tuple[tuple[str, Callable[[World], chapters.Evidence]], ...] = (
    ("first model", chapters.first_model),
    ("spring", chapters.live_until(
        "Spring", "Departures are answered before they happen; labels follow. Sites watch their data and their model.",
        datetime(2013, 5, 15, tzinfo=UTC),
    )),
    ("bad release", chapters.bad_release),
    ("summer", chapters.live_until(
        "Summer", "Thunderstorms and full planes: where labels confirm that quality is lost, a retrain is decided.",
        datetime(2013, 8, 15, tzinfo=UTC),
    )),
    ("hub away", chapters.hub_away),
    ("rest of the year", chapters.live_until(
        "Autumn and winter", "The loop goes on by itself.", datetime(2014, 1, 1, 6, tzinfo=UTC)
    )),
    ("loop closed", chapters.loop_closed),
)  # fmt: skip
LIVE_SPEED = 1 / 5
BUSY = 6


def main() -> int:
    try:
        options = Options.read(dict(os.environ))
        options.home.mkdir(parents=True, exist_ok=True)
        with (options.home / "lock").open("a+") as lock:
            return _alone(options, lock)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _alone(options: Options, lock: Any) -> int:
    """Tell the story unless another process tells it in the same folder."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        print(
            f"error: a demo is running on {options.home} already (process {lock.read().strip() or 'unknown'}). "
            "End it with Ctrl-C there, or give this one its own folder: make run DEMO_DIR=/path",
            file=sys.stderr,
        )
        return BUSY
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return tell(options)


def tell(options: Options) -> int:
    world = World(options)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return play(world)
    except KeyboardInterrupt as stop:
        world.tell.plain(f"\nstopped by {stop}")
        return 130 if options.leave else 0
    except (StoryError, EOFError) as error:
        world.tell.plain(f"\nerror: {error}\nlogs: {options.home / 'logs'}")
        return 1
    finally:
        _silence()
        _end(world)


def _interrupt(number: int, _frame: Any) -> NoReturn:
    """Once: whoever presses Ctrl-C again is waiting for an end that is under way already."""
    _silence()
    raise KeyboardInterrupt(signal.Signals(number).name)


def _silence() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end(world: World) -> None:
    began = time.monotonic()
    with world.tell.doing("ending every process"):
        world.close()
    again = "" if world.options.leave else " make run goes on here; make clean-demo starts over."
    world.tell.plain(f"every process has ended ({time.monotonic() - began:.1f} s).{again}")


def play(world: World) -> int:
    happened = world.memory.get("evidence", {})
    greet(world)
    opening = chapters.open_house(world)
    chapters.require(world, opening)
    happened |= opening
    show_doors(world)
    for name, chapter in PLOT:
        if not world.memory.get(f"done.{name}"):
            evidence = chapter(world)
            chapters.require(world, evidence)
            happened |= evidence
            world.memory.put("evidence", happened)
            world.memory.put(f"done.{name}", value=True)
    scoreboard.show(world)
    world.tell.say(f"told in {world.tell.elapsed_s / 60:.1f} minutes")
    missing = [name for name, (held, _) in happened.items() if not held]
    for name in missing:
        world.tell.say(f"✕ did not happen: {name}")
    if world.options.leave:
        return 1 if missing else 0
    stay(world)
    return 0


def greet(world: World) -> None:
    """What this is, how fast it goes, and how to end it."""
    options, told = world.options, [name for name, _ in PLOT if world.memory.get(f"done.{name}")]
    pace = f"{options.speed:g} hours of it a second" if options.speed else "without waiting"
    world.tell.plain(f"Landreeve: a hub, three airports and the year 2013, {pace}. State: {options.home}")
    world.tell.plain("Ctrl-C ends every process at any time; make run goes on where it stopped.")
    if world.memory.get("people"):
        before = f" Told before: {len(told)} of {len(PLOT)} chapters." if told else ""
        world.tell.plain(f"Going on where it stopped, at {world.clock:%d %B}.{before}")


def show_doors(world: World) -> None:
    """Where to look, and the one-time codes to get in."""
    rows = [("hub", world.hub_url, code(world, "hub"), "")]
    for name, site in world.sites.items():
        rows.append((name, site.api.url if site.api else "?", code(world, name), f"inference at {site.infer}"))
    world.tell.plain("\n   Open these in a browser; each code works once, within the hour.")
    for name, url, once, more in rows:
        world.tell.plain(f"   {name:4} console  {url}   code {once}   {more}".rstrip())
    world.tell.plain("   A fresh code: .venv/bin/landreeve-hub code --state " + _quoted(world.hub_state))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def code(world: World, where: str) -> str:
    answer = world.hub("code") if where == "hub" else world.agent(where, "code")
    return str(answer["code"] if isinstance(answer, dict) else answer)


def stay(world: World) -> None:
    """Live the last week slowly, so that the consoles have something to show, then wait."""
    world.tell.plain("\nEverything stays up, and the last week of the year goes on slowly: look into the consoles.")
    show_doors(world)
    world.tell.plain("Ctrl-C ends every process.")
    world.pace(LIVE_SPEED)
    said = ""
    while world.clock < world.options.end:
        world.advance(world.clock + timedelta(hours=1))
        try:
            chapters.answer_drafts(world)
        except StoryError as error:  # whoever looks around may do what the story did not expect; everything stays up
            if str(error) != said:
                said = str(error)
                world.tell.say(f"the story cannot go on by itself ({said}); look into the hub's console")
    world.tell.say("the year is over; everything stays up")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
