"""What callers notice of an update by each strategy: a real worker under load. Writes build/bench/strategies.json.

The update machine is walked through its states, every other time back to the last good version, and the traffic follows
it by the agent's own code. Every request has an id of its own; answers and the captured rows are laid side by side.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.strategy import Strategy  # noqa: E402 - needs the path above
from landreeve_agent.intake.line import Line, parse_lines  # noqa: E402
from landreeve_agent.serving.control import Plan  # noqa: E402
from landreeve_agent.serving.supervise import WorkerProcess  # noqa: E402
from landreeve_agent.update import machine  # noqa: E402
from landreeve_agent.update.directing import Serving, is_last, serving, to_activate  # noqa: E402
from landreeve_agent.update.pointer import release_folder  # noqa: E402
from landreeve_agent.update.standing import Installed, Order, Phase, State  # noqa: E402
from landreeve_agent.update.traffic import Traffic  # noqa: E402

from tests.agent.onnx_models import body, write_release  # noqa: E402
from tests.bench.bench_swap import expected  # noqa: E402

UPDATES, CLIENTS, STAGE_S = 10, 8, 0.15
VERSIONS = {"1.0.0": ("a" * 64, 0.0), "2.0.0": ("b" * 64, 1.5)}
STRATEGIES = {
    "direct": Strategy(),
    "shadow": Strategy(kind="shadow"),
    "canary": Strategy(kind="canary", shares=(0.1, 0.5, 1.0)),
    "ab": Strategy(kind="ab", shares=(0.5,), key="carrier"),
    "blue_green": Strategy(kind="blue_green"),
}
NOW = "2026-11-23T12:00:00.000000Z"


@dataclass(frozen=True)
class Asked:
    """A request's id and key, and the set of versions that was told when it began."""

    name: str
    key: str
    stage: int


@dataclass
class Books:
    """What was asked and answered. ``allowed`` are the versions that may answer, one set after another; while a change
    is on its way the old and the new set hold."""

    right: dict[str, float]
    allowed: list[frozenset[str]] = field(default_factory=list)
    answered: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    wrong: int = 0
    stale: int = 0
    moved: int = 0
    homes: dict[str, str] = field(default_factory=dict)  # of a key, in this stage

    def judge(self, asked: Asked, status: bytes, document: dict[str, object]) -> None:
        if status != b"200":
            self.failed += 1
            return
        version = str(document["model_version"])
        outputs = document["outputs"]
        self.wrong += abs(self.right[version] - outputs[0]["data"][0]) > 1e-5  # type: ignore[index]
        self.stale += all(version not in allowed for allowed in self.allowed[asked.stage :])
        self.answered[asked.name] = version
        # Every second set is one on its way: there a key may be answered by the old version and then by the new.
        settled = asked.stage % 2 == 1 and asked.stage == len(self.allowed) - 1
        if settled and self.homes.setdefault(asked.key, version) != version:
            self.moved += 1


@dataclass
class Client:
    """Asks without a pause on a connection it keeps; never asks again for what failed."""

    books: Books
    address: tuple[str, int]
    number: int
    stop: asyncio.Event

    async def run(self) -> None:
        reader = writer = None
        asked = 0
        while not self.stop.is_set():
            asked += 1
            one = Asked(f"{self.number}-{asked}", f"k{asked % 16}", len(self.books.allowed) - 1)
            try:
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection(*self.address)
                sent = json.dumps(body(id=one.name, parameters={"key": one.key})).encode()
                head = f"POST /v2/models/delay/infer HTTP/1.1\r\nhost: b\r\ncontent-length: {len(sent)}\r\n\r\n"
                writer.write(head.encode() + sent)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r")[0])
                document = json.loads(await reader.readexactly(length))
            except (OSError, asyncio.IncompleteReadError):
                self.books.failed += 1
                writer = None
                continue
            self.books.judge(one, answer.split(b" ")[1], document)
        if writer is not None:
            writer.close()


@dataclass
class Site:
    """The machine's state and the traffic that follows it."""

    books: Books
    traffic: Traffic
    state: State

    async def follow(self, to: Serving) -> None:
        """Let that serve; until it is told that it does, either may answer."""
        now = frozenset(item.version for item in (to.active, to.other if to.share else None) if item is not None)
        self.books.allowed.append(now | self.books.allowed[-1] if self.books.allowed else now)
        await self.traffic.direct("delay", to)
        self.books.allowed.append(now)
        self.books.homes.clear()
        await asyncio.sleep(STAGE_S)

    async def update(self, version: str, strategy: Strategy, *, good: bool) -> None:
        """From the order to the commit, or back from the last stage."""
        decide, of = machine.decide, self.state.generation + 1
        order = Order("delay", VERSIONS[version][0], version, 1, f"r{of}", of, 1, strategy=strategy)
        self.state = decide(self.state, machine.Ordered(order))
        for event in (machine.Accepted(of), machine.Proceeded(of), machine.Staged(of), machine.Proceeded(of)):
            self.state = decide(self.state, event)
        self.state = decide(self.state, machine.Proven(of, plan()))
        await self.follow(to_activate(self.state))
        self.state = decide(self.state, machine.Activated(of, NOW))
        while not is_last(self.state):
            self.state = decide(self.state, machine.Stepped(of, NOW, "On."))
            await self.follow(serving(self.state))
        ended = machine.Passed(of, "Fine.") if good else machine.Failed(of, "log_loss", "Worse.")
        self.state = decide(self.state, ended)
        await self.follow(serving(self.state))
        self.state = decide(self.state, machine.Restored(of)) if not good else self.state
        assert self.state.phase in {Phase.COMMITTED, Phase.ROLLED_BACK}


def plan() -> str:
    return msgspec.json.encode(Plan(batch=16)).decode()


def captured(spool: Path) -> list[Line]:
    files = sorted(spool.glob("*.jsonl"))
    return [line for path in files for line in parse_lines(path.read_bytes(), 0, closed=True).lines]


async def strategy(kind: str, folder: Path) -> dict[str, object]:
    models = folder / "models"
    for release, bias in VERSIONS.values():
        write_release(release_folder(models, "delay", release), bias)
    books = Books(expected())
    worker = WorkerProcess(folder / "spool")
    await worker.start()
    try:
        first = Installed(VERSIONS["1.0.0"][0], "1.0.0", plan())
        site = Site(books, Traffic(worker, models), State("delay", good=first))
        await site.follow(serving(site.state))
        stop = asyncio.Event()
        clients = [asyncio.create_task(Client(books, worker.address, n, stop).run()) for n in range(CLIENTS)]
        for number in range(UPDATES):
            assert site.state.good is not None
            other = "2.0.0" if site.state.good.version == "1.0.0" else "1.0.0"
            await site.update(other, STRATEGIES[kind], good=number % 2 == 0)
        stop.set()
        await asyncio.gather(*clients)
    finally:
        await worker.stop()
    seen = Counter(line.id for line in captured(folder / "spool"))
    names = {line.id: line.version for line in captured(folder / "spool")}
    return {
        "requests": len(books.answered) + books.failed,
        "failed": books.failed,
        "of another version than named": books.wrong,
        "of a version no longer or not yet told": books.stale,
        "keys that changed sides within a stage": books.moved,
        "rows not on file": sum(seen[name] == 0 for name in books.answered),
        "rows on file twice": sum(count > 1 for count in seen.values()),
        "rows on file of another version": sum(names.get(n) != v for n, v in books.answered.items()),
    }


def main() -> None:
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {UPDATES} updates by each strategy, half of them back"
    )
    rows: list[dict[str, object]] = []
    for kind in STRATEGIES:
        with tempfile.TemporaryDirectory() as temporary:
            found = asyncio.run(strategy(kind, Path(temporary)))
        print(f"{kind:11}", "  ".join(f"{what}: {value}" for what, value in found.items()))
        for what, value in found.items():
            counted = what == "requests"
            bar, holds = (None, None) if counted else ("≤ 0", value == 0)
            rows.append({"what": f"{kind}: {what}", "value": value, "unit": "", "bar": bar, "holds": holds})
    target = ROOT / "build/bench/strategies.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
