"""Simulated boxes: the agent's own update machine (`landreeve_agent.update.machine`) on a virtual clock.

A box carries out its effects in seeded times with seeded ends, says each transition to the hub through an outbox with
numbered facts, and says its state when it connects. It survives kill -9: the state is what the machine says it is.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from landreeve_agent.update import machine
from landreeve_agent.update.directing import serving
from landreeve_agent.update.machine import Effect
from landreeve_agent.update.standing import Installed, Order, Phase, State

MODEL = "delay"
EPOCH = 1_000_000_000
SECONDS = {
    Effect.CHECK: (1, 5),
    Effect.PROCEED: (1, 2),
    Effect.FETCH: (30, 400),
    Effect.PREFLIGHT: (20, 200),
    Effect.ACTIVATE: (1, 20),
    Effect.WATCH: (200, 2500),
    Effect.RESTORE: (1, 20),
    Effect.TAKE_NEXT: (1, 2),
}


@dataclass(frozen=True, slots=True)
class Document:
    """A desired document: ``order`` is (release, version, rollout, action), None when it names no release.

    ``history`` names every document it was made after, by this hub and by a person's word: a box must never obey one of
    another history. It travels with the document only here, so that the simulation can judge.
    """

    generation: int
    order: tuple[str, str, str, str] | None
    history: frozenset[str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.generation, self.order, sorted(self.history))).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Said:
    """A fact of the update machine, numbered by the box."""

    seq: int
    rollout: str
    generation: int
    release: str
    state: str
    cause: str
    sentence: str
    probation: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """The retained state of a box."""

    online: bool
    generation: int
    document: str
    running: str
    version: str


@dataclass(slots=True)
class Box:
    """One device. ``fate(release)`` is where that release ends on this box: the effect at which it fails, or None."""

    name: str
    site: str
    random: Random
    fate: Callable[[str], Effect | None]
    state: State = field(default_factory=lambda: State(MODEL))
    document: Document = Document(0, None, frozenset())
    reachable: bool = True
    outbox: list[Said] = field(default_factory=list)
    seq: int = 0
    token: int = 0
    tell_document: bool = True
    forks: int = 0
    model: str = MODEL
    prior: str = ""

    def __post_init__(self) -> None:
        if self.model != MODEL:
            self.state = State(self.model)

    def install(self, release: str, version: str) -> None:
        """It was on this version when the history begins."""
        self.prior = release
        self.state = State(self.model, phase=Phase.COMMITTED, good=Installed(release, version, "{}"))

    def obey(self, document: Document) -> bool:
        """Take a document of the broker; whether it was news."""
        if document.generation <= self.document.generation:
            return False
        if self.document.generation and self.document.digest not in document.history:
            self.forks += 1
        self.document = document
        order = document.order
        if order is None:
            event: machine.Event = machine.Unordered(document.generation)
        else:
            release, version, rollout, action = order
            known = Order(self.model, release, version, 1, rollout, document.generation, 1, action == "rollback")
            event = machine.Ordered(known)
        self._dispatch(event)
        return True

    def lose(self) -> None:
        """Throw away what it serves: an agent with a mistake of its own."""
        self.state = State(self.model)
        self.token += 1

    def begin_epoch(self, epoch: int) -> None:
        """Number facts anew, beyond all that was said: the outbox is not the one that it was."""
        self.seq = epoch * EPOCH
        self.outbox = []
        self.token += 1

    def begin(self) -> float | None:
        """Seconds that the effect now due takes; None when there is nothing to do."""
        effect = machine.effect_of(self.state)
        if effect is None:
            return None
        if effect is not Effect.TAKE_NEXT and self.state.order is not None:
            self._dispatch(machine.Attempted(self.state.order.generation))
            effect = machine.effect_of(self.state)
            if effect is None:
                return None
        self.token += 1
        return self.random.uniform(*SECONDS[effect])

    def end(self) -> None:
        """The effect that was begun comes to its end."""
        effect = machine.effect_of(self.state)
        if effect is not None:
            self._dispatch(self._outcome(effect))

    def _outcome(self, effect: Effect) -> machine.Event:
        order = self.state.order
        if effect is Effect.TAKE_NEXT or order is None:
            return machine.NextTaken()
        of = order.generation
        if not order.rollback and self.fate(order.release) is effect:
            return machine.Failed(of, "planted", f"{self.site} failed at {effect}.")
        match effect:
            case Effect.CHECK:
                return machine.Accepted(of)
            case Effect.FETCH:
                return machine.Staged(of)
            case Effect.PREFLIGHT:
                return machine.Proven(of, "{}")
            case Effect.ACTIVATE:
                return machine.Activated(of, "2026-03-01T00:00:00Z")
            case Effect.WATCH:
                return machine.Passed(of, f"{self.site} proved it.")
            case Effect.RESTORE:
                return machine.Restored(of)
            case _:
                return machine.Proceeded(of)

    def _dispatch(self, event: machine.Event) -> None:
        before = self.state
        self.state = machine.decide(before, event)
        order = self.state.order
        if (self.state.phase is before.phase and order is before.order) or order is None:
            return
        self.seq += 1
        shown = None
        if before.phase is Phase.PROBATION:
            shown = {"rows": 500, "errors": self.random.randrange(3), "p95_ratio": self.random.uniform(0.9, 1.2)}
        state = self.state
        said = Said(
            self.seq,
            order.rollout,
            order.generation,
            order.release,
            str(state.phase),
            state.cause,
            state.sentence,
            shown,
        )
        self.outbox.append(said)

    @property
    def running(self) -> tuple[str, str]:
        """The release and version that answer requests."""
        active = serving(self.state).active
        return (active.release, active.version) if active is not None else ("", "")

    def ended_badly(self, rollout: str) -> bool:
        """Whether this rollout's order ended on the box by its own verdict."""
        order = self.state.order
        return order is not None and order.rollout == rollout and self.state.cause == "planted"

    @property
    def standing(self) -> Standing:
        release, version = self.running
        digest = self.document.digest if self.document.generation and self.tell_document else ""
        return Standing(self.reachable, self.document.generation, digest, release, version)
