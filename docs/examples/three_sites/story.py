"""Three airports, one year: the whole loop on real data, through the command lines and APIs any user has.

Environment: SPEED event hours a second (default 12; 0 = no waiting) · EXIT=1 leave at the end, 0 only if every
chapter happened · EVERY=k take every k-th departure · UNTIL end of the year · DEMO_DIR state (default .demo).
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

# The example is a folder of programs, not a package.
import chapters  # noqa: E402
import scoreboard  # noqa: E402
from surface import StoryError  # noqa: E402
from world import SITES, Options, World, say  # noqa: E402

PLOT: tuple[tuple[str, Callable[[World], chapters.Evidence]], ...] = (
    ("first model", chapters.first_model),
    ("spring", chapters.live_until(datetime(2013, 5, 15, tzinfo=UTC))),
    ("bad release", chapters.bad_release),
    ("summer", chapters.live_until(datetime(2013, 8, 15, tzinfo=UTC))),
    ("hub away", chapters.hub_away),
    ("rest of the year", chapters.live_until(datetime(2014, 1, 1, 6, tzinfo=UTC))),
    ("loop closed", chapters.loop_closed),
)


def main() -> int:
    options = Options.read(dict(os.environ))
    options.home.mkdir(parents=True, exist_ok=True)
    with (options.home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(
                f"error: another demo is running on {options.home}; end it (Ctrl-C there) "
                "or give this one its own folder with DEMO_DIR=…",
                file=sys.stderr,
            )
            return 6
        return tell(options)


def tell(options: Options) -> int:
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    world = World(options)
    try:
        return play(world)
    except KeyboardInterrupt:
        say("\nending …")
        return 0 if not options.leave else 130
    except (StoryError, EOFError) as error:
        print(f"\nerror: {error}\nlogs: {options.home / 'logs'}", file=sys.stderr)
        return 1
    finally:
        world.close()


def play(world: World) -> int:
    started = time.monotonic()
    happened = world.memory.get("evidence", {})
    chapters.require(opening := chapters.open_house(world), "open")
    happened |= opening
    show_doors(world)
    for name, chapter in PLOT:
        if world.memory.get(f"done.{name}"):
            say(f"Chapter    {name}: told before")
            continue
        evidence = chapter(world)
        chapters.require(evidence, name)
        happened |= evidence
        world.memory.put("evidence", happened)
        world.memory.put(f"done.{name}", value=True)
    scoreboard.show(world)
    say(f"\ntold in {(time.monotonic() - started) / 60:.1f} minutes; starts: {json.dumps(world.keeper.starts())}")
    missing = [name for name, (held, _) in happened.items() if not held]
    for name in missing:
        say(f"✕ did not happen: {name}")
    if world.options.leave:
        return 1 if missing else 0
    stay(world)
    return 0


def show_doors(world: World) -> None:
    """Where to look, and the one-time codes to get in."""
    say(f"\n  hub console   {world.hub_url}   code {code(world, 'hub')}")
    for site in SITES:
        api = world.sites[site].api
        url = api.url if api else "?"
        say(f"  {site} console   {url}   code {code(world, site)}   inference {world.sites[site].infer}")
    say()


def code(world: World, where: str) -> str:
    answer = world.hub("code") if where == "hub" else world.agent(where, "code")
    return str(answer["code"] if isinstance(answer, dict) else answer)


def stay(world: World) -> None:
    say("\nEverything stays up; open the consoles above. Ctrl-C ends every process.")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
