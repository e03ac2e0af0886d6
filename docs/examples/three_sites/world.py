"""The demo's world: one hub, three sites, their applications, and the event clock they share."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from narration import Narrator
from processes import Keeper, Program, Service
from surface import Api, StoryError, cli, wait_for

ROOT = Path(__file__).resolve().parents[3]
MODEL = "flight-delay"
CATALOG = ROOT / "models" / "catalog" / MODEL
SITES = ("EWR", "JFK", "LGA")
CANARY = "EWR"
YEAR_START = datetime(2013, 1, 1, tzinfo=UTC)
LAST_WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Options:
    """What the environment asks for: SPEED (event hours a second, 0 = no waiting), EXIT, EVERY, UNTIL, DEMO_DIR."""

    home: Path
    speed: float
    leave: bool
    every: int
    end: datetime

    @staticmethod
    def read(environ: dict[str, str]) -> "Options":
        """Raises ValueError naming the variable that cannot be used."""
        read = {"SPEED": (float, "12"), "EVERY": (int, "1"), "UNTIL": (datetime.fromisoformat, "2014-01-01T06:00:00Z")}
        values: dict[str, Any] = {}
        for name, (parse, default) in read.items():
            try:
                values[name] = parse(environ.get(name) or default)  # type: ignore[operator]
            except ValueError as error:
                raise ValueError(f"{name}={environ[name]}: {error}") from error
        if values["SPEED"] < 0 or values["EVERY"] < 1:
            raise ValueError("SPEED must be 0 or more event hours a second, EVERY 1 or more")
        return Options(
            home=Path(environ.get("DEMO_DIR") or ROOT / ".demo").resolve(),
            speed=values["SPEED"],
            leave=environ.get("EXIT", "") == "1",
            every=values["EVERY"],
            end=values["UNTIL"] if values["UNTIL"].tzinfo else values["UNTIL"].replace(tzinfo=UTC),
        )

    @property
    def told_until(self) -> datetime:
        """A demo that stays up keeps the last week, to live it slowly while people look around."""
        return self.end if self.leave else self.end - LAST_WEEK


@dataclass
class Site:
    """One airport: its agent's state folder and API, and its application."""

    name: str
    state: Path
    api: Api | None = None
    infer: str = ""
    application: Program | None = None
    last: dict[str, Any] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        if self.api is None:
            raise StoryError(f"{self.name}: the agent is not up yet")
        answer: dict[str, Any] = self.api.get("/api/v1/status")
        return answer

    def running_application(self) -> Program:
        if self.application is None:
            raise StoryError(f"{self.name}: its application is not running")
        return self.application

    def model_status(self) -> dict[str, Any]:
        return next((m for m in self.status()["models"] if m["name"] == MODEL), {})


class World:
    """Starts and ends everything; moves the year on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.keeper = Keeper()
        self.hub_state = options.home / "hub"
        self.sites = {name: Site(name, options.home / "sites" / name) for name in SITES}
        self.people: dict[str, Api] = {}
        self.hub_url = ""
        self.memory = Memory(options.home / "story.json")
        self.tell = Narrator(lambda: self.clock)
        self.answered = 0

    # Starting ---------------------------------------------------------------------------------------------

    def start_hub(self) -> None:
        self.keeper.keep(self._service("hub", "landreeve_hub", self.hub_state, "serve"))
        self.find_hub()

    def find_hub(self) -> None:
        starts = self.keeper.service("hub").starts
        ports = self.wait("the hub to answer", lambda: self._hub_ports(starts), timeout_s=60)
        self.hub_url = f"http://127.0.0.1:{ports['http']}"
        for name, wanted in ports.get("wanted", {}).items():
            self._say_moved(f"the hub's {name}", wanted, ports[name])
        for name in self.people:
            self.people[name].url = self.hub_url

    def _hub_ports(self, starts: int) -> Any:
        service = self.keeper.service("hub")
        file = self.hub_state / "run" / "ports.json"
        if service.starts - starts > 3:
            raise StoryError(f"the hub does not stay up:\n{service.tail()}")
        ports = json.loads(file.read_text())
        Api(f"http://127.0.0.1:{ports['http']}", self.admin_token()).get("/api/v1/me")
        return ports

    def admin_token(self) -> str:
        """The machine's administrator's, as the hub's command line uses it."""
        return (self.hub_state / "run" / "admin-token").read_text().strip()

    def hub(self, *arguments: str, by: str = "") -> Any:
        """Run landreeve-hub; as one of the people when named, else as the machine's administrator."""
        person = ("--url", self.hub_url, "--token", self.memory.get(f"token.{by}"))
        return cli("landreeve-hub", *arguments, *(person if by else ("--state", str(self.hub_state))))

    def agent(self, site: str, *arguments: str, accept: tuple[int, ...] = (0,)) -> Any:
        return cli("landreeve", "--state", str(self.sites[site].state), *arguments, accept=accept)

    def start_agent(self, name: str) -> None:
        site = self.sites[name]
        self.keeper.keep(self._service(f"agent-{name}", "landreeve_agent", site.state, "run"))
        self.find_agent(name)

    def find_agent(self, name: str) -> None:
        site = self.sites[name]

        def ports() -> Any:
            found = json.loads((site.state / "run" / "ports.json").read_text())
            api = Api(f"http://127.0.0.1:{found['console']}", (site.state / "tokens" / "api").read_text().strip())
            api.get("/api/v1/status")
            site.api, site.infer = api, f"http://127.0.0.1:{found['serving']}"
            return found

        try:
            found = self.wait(f"the agent of {name} to answer", ports, timeout_s=60)
        except StoryError as error:
            raise StoryError(f"{error}\n{self.keeper.service(f'agent-{name}').tail()}") from error
        for kind, wanted in wanted_ports(name).items():
            self._say_moved(f"{name}'s {kind}", wanted, found[kind])

    def _say_moved(self, whose: str, wanted: int, found: int) -> None:
        if wanted != found:
            self.tell.say(f"port {wanted} is busy: {whose} is on {found}")

    def wait(self, what: str, ask: Callable[[], Any], *, timeout_s: float) -> Any:
        """`wait_for`, saying what is waited for."""
        with self.tell.doing(f"waiting for {what}"):
            return wait_for(what, ask, timeout_s=timeout_s)

    def start_application(self, name: str) -> None:
        site = self.sites[name]
        if site.api is None:
            raise StoryError(f"{name}: start its agent first")
        command = [
            sys.executable, str(ROOT / "docs/examples/replay.py"),
            "--site", name, "--data", str(CATALOG / "data" / f"{name}.csv.gz"),
            "--infer", site.infer, "--intake", site.api.url, "--token-file", str(site.state / "tokens" / "app"),
            "--log", str(self.options.home / "applications" / f"{name}.csv"), "--every", str(self.options.every),
        ]  # fmt: skip
        site.application = Program(command, self.options.home / "logs" / f"application-{name}.log")
        site.application.send(f"speed {self.options.speed}")

    def _service(self, name: str, module: str, state: Path, *verb: str) -> Service:
        where = ("--state", str(state))
        words = (*where, *verb) if module == "landreeve_agent" else (*verb, *where)
        command = [sys.executable, "-m", module, *words]
        return Service(name, command, self.options.home / "logs" / f"{name}.log", {"PYTHONUNBUFFERED": "1"})

    # Time -------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> datetime:
        return datetime.fromisoformat(self.memory.get("clock", YEAR_START.isoformat()))

    def pace(self, hours_per_s: float) -> None:
        """Event hours for each second on the wall from now on; 0 does not wait."""
        for site in self.sites.values():
            site.running_application().send(f"speed {hours_per_s}")

    def advance(self, until: datetime, *, step: timedelta = timedelta(days=1)) -> None:
        """Let all three applications live up to that moment of the year."""
        until = min(until, self.options.end)
        with self.tell.doing(lambda: f"departures of {self.clock:%d %B}; {self.answered:,} answered in this run"):
            while self.clock < until:
                self._advance(until if self.options.speed == 0 else min(until, self.clock + step))

    def _advance(self, until: datetime) -> None:
        failures: list[BaseException] = []
        threads = [threading.Thread(target=self._advance_one, args=(s, until, failures)) for s in self.sites.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self.answered += sum(site.last.get("answered", 0) for site in self.sites.values())
        self.memory.put("clock", until.isoformat())

    def _advance_one(self, site: Site, until: datetime, failures: list[BaseException]) -> None:
        try:
            application = site.running_application()
            application.send(f"until {until.strftime('%Y-%m-%dT%H:%M:%SZ')}")
            site.last = json.loads(application.answer())
        except (StoryError, EOFError, OSError, ValueError) as error:
            failures.append(error)

    def days(self, count: float) -> None:
        self.advance(self.clock + timedelta(days=count))

    # Ending -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        for site in self.sites.values():
            if site.application:
                site.application.close()
        self.keeper.close()


def wanted_ports(site: str) -> dict[str, int]:
    """Where a site's console and inference server should be."""
    return {"console": 8181 + SITES.index(site), "serving": 8281 + SITES.index(site)}


class Memory:
    """What the story remembers between two runs: chapters done, the clock, tokens. 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(self._values, out, indent=1)
        temporary.replace(self._path)
