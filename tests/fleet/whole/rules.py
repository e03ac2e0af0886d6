"""What must hold in every history of a whole fleet, each rule by its name; they look at what the product decided, at
its tables and at the boxes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from landreeve.trust.document import parse_document
from landreeve.wire import schedule
from landreeve.wire.codec import decode
from landreeve.wire.messages import SignedDesired
from landreeve_hub.rollout import book
from landreeve_hub.rollout.machine import decide, uncovered
from landreeve_hub.rollout.roster import SETTLED, Back, Outcome
from landreeve_hub.rollout.state import FINAL, Around, Assign, Decision, DeviceFact, Rollout, State
from landreeve_hub.store import tables
from sqlalchemy import Connection, func, select

from tests.fleet.timing import PATIENCE, PROGRESS, Patience, Progress

if TYPE_CHECKING:
    from tests.fleet.whole.world import World

TICK = timedelta(minutes=15)  # the hub looks every ten at the latest, and what it does takes it another look
RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}
BY_PEOPLE = frozenset({"rolled_back", "aborted", "paused", "resumed", "approved", "retry", "next", "proposed", ""})
COUNT_WAITING = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM outbox_former)"
Fleet = Mapping[str, DeviceFact]


def of_places(rollouts: Iterable[Rollout]) -> Counter[str]:
    """How many devices are under way at each place, whatever rollout and component; a way back is no update."""
    seen = {
        (rollout.members[device].where, device)
        for rollout in rollouts
        if rollout.state not in FINAL and rollout.kind != "return"
        for device in rollout.members.flying
    }
    return Counter(place for place, _ in seen)


class Rules:
    """``world.require`` is told of each; nothing here is thrown into the product."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._ordered: set[tuple[str, str]] = set()
        self._pending: set[tuple[str, str]] = set()
        self._patience, self._progress = Patience(), Progress()
        self._back: datetime | None = None
        self._skew = 0.0

    def forget(self) -> None:
        """The hub is another one, which has forgotten some of it."""
        self._patience.forget()
        self._ordered.clear()
        self._pending.clear()

    def back(self) -> None:
        """The hub listens again from now on."""
        self._back = self._world.hub_clock()
        self._progress.forget()

    def kept(self, *, whole: bool) -> None:
        """What was decided is committed now, or nobody knows whether it was."""
        self._patience.kept(whole=whole)
        if whole:
            self._ordered |= self._pending
        self._pending.clear()

    def retried(self, rollout: str) -> None:
        """A person let it go on in spite of what is known."""
        self._world.forced.add(rollout)

    def _require(self, holds: bool, name: str, what: str = "") -> None:
        self._world.require(holds, name, what)

    # --- each decision ---

    def decided(self, before: Rollout, fleet: Fleet, around: Around, changed: Any, decision: Decision) -> None:
        after, now = decision.rollout, self._world.hub_clock()
        installs = [o for o in decision.orders if isinstance(o, Assign) and o.action == "install"]
        gate = before.plan.gate
        self._set_by(now)
        hasty = self._patience.hasty(before, after, fleet, now, self._back)
        self._require(not hasty, PATIENCE, hasty)
        self._require(len(after.members.flying) <= gate.max_in_flight, "never more than max in flight", after.id)
        for device in after.members.delta:
            old, new = before.members.get(device), after.members[device]
            forward = old is None or RANK[new.outcome] >= RANK[old.outcome] or new.attempt > old.attempt
            self._require(forward, "an outcome never moves back", f"{after.id} {device} {new.outcome}")
        for order in installs:
            self._order(before, after, fleet[order.device], order)
        if installs and before.kind == "update":
            older = self._world.older(before)
            self._require(not older, "one rollout of a model at a time", f"{before.id} before {older}")
            failed = after.members.count(Outcome.FAILED)
            within = failed <= max(gate.max_failures, before.accepted_failures) or gate.max_failed_share is not None
            self._require(within, "failures past the limit stop new orders", after.id)
            self._require(
                all(after.members[o.device].wave <= after.wave for o in installs), "nobody outside the waves reached"
            )
        self._words(after, decision)
        if self._world.random.random() < self._world.case.often:
            whole = decide(before, fleet, now, around)
            same = whole.rollout == after and len(whole.orders) == len(decision.orders)
            self._require(same, "a look at what changed sees everything", f"{after.id} {changed}")

    def _order(self, before: Rollout, after: Rollout, fact: DeviceFact, order: Assign) -> None:
        again = (order.device, order.rollout)
        self._require(again not in self._ordered, "nobody is ordered twice", str(again))
        self._pending.add(again)
        self._require(not fact.conflict, "nothing is ordered for a device in conflict", str(again))
        doubled = order.device in self._world.doubled()
        self._require(not doubled, "nothing is ordered for two boxes of one name", str(again))
        forced = before.id.partition("-late")[0] in self._world.forced
        bad = order.release in self._world.quarantined() and not forced
        self._require(not bad, "a release that failed the fleet is not ordered again", f"{again} {order.release[:4]}")
        self._window(before, fact)
        for first in self._world.firsts(before):
            other = first.members.get(order.device)
            waits = other is not None and first.state not in FINAL | {State.ROLLING_BACK} and other.outcome in {
                Outcome.WAITING, Outcome.ORDERED,
            } and other.back is Back.NO  # fmt: skip
            self._require(not waits, "nothing is ordered before what it waits for", f"{again} before {first.id}")

    def _window(self, before: Rollout, fact: DeviceFact) -> None:
        windows = before.plan.windows
        keeps = schedule.FEATURE in fact.features
        asked = windows.download if keeps else windows.activate
        if asked:
            local = self._world.hub_clock().astimezone(ZoneInfo(fact.labels["timezone"]))
            held = local.hour >= 20 or local.hour < 6
            self._require(held, "no order outside the site's window", f"{before.id} {fact.id} {local}")

    def _words(self, after: Rollout, decision: Decision) -> None:
        if after.state in FINAL:
            return
        self._require(
            bool(decision.waiting), "a rollout under way is never without a word", f"{after.id} {after.state}"
        )
        if after.state is not State.RUNNING:
            return
        spoken: set[str] = set()
        for one in decision.waiting:
            sites = getattr(one, "sites", None)
            if sites is None:
                return
            spoken |= set(sites)
        silent = [member.site for member in uncovered(after) if member.site not in spoken]
        self._require(not silent, "each device that is due is spoken of", str(silent[:3]))

    # --- each look ---

    def looked(self) -> None:
        """After a look of the hub: what is in memory is what is kept, and no two things happen at one place."""
        running = {name: run.rollout for name, run in self._world.office.runner._live.running.items()}
        kept = self._world.office.store.look(lambda c: {k.rollout.id: k.rollout for k in book.listed(c, active=True)})
        for name, rollout in kept.items():
            same = name in running and running[name] == rollout
            self._require(same, "what the hub remembers is what it keeps", f"{name} {name in running}")
        for rollout in running.values():
            self._counted(rollout)
        self._going_on(running)
        under_way = [r for r in kept.values() if r.kind != "return"]
        for place, count in of_places(under_way).items():
            self._require(count <= 1, "never two of one site", f"{place}: {count}")
        flying: dict[tuple[str, str], list[str]] = defaultdict(list)
        for rollout in under_way:
            for device in rollout.members.flying:
                flying[device, rollout.model].append(rollout.id)
        for (device, model), names in flying.items():
            self._require(
                len(names) == 1, "never two rollouts on one component of one device", f"{device} {model} {names}"
            )

    def _going_on(self, running: Mapping[str, Rollout]) -> None:
        self._set_by(self._world.hub_clock())
        free = [one for one in running.values() if one.kind != "update" or not self._world.older(one)]
        late = self._progress.dragged(free, self._world.hub_clock(), TICK)
        self._require(not late, PROGRESS, late)

    def _set_by(self, now: datetime) -> None:
        """Time is counted by the hub's clock, so not across a jump of it."""
        if self._skew == self._world.hub_skew:
            return
        self._skew = self._world.hub_skew
        self._progress.forget()
        self._patience.rewind(now)
        self._back = min(self._back, now) if self._back is not None else None

    def _counted(self, rollout: Rollout) -> None:
        members = rollout.members
        counts = {outcome: members.count(outcome) for outcome in Outcome}
        true = Counter(member.outcome for member in members.values())
        self._require(counts == {o: true[o] for o in Outcome}, "counts are those of the members", rollout.id)
        if rollout.state is State.FINISHED and rollout.id not in self._world.doubtful:
            open_ = [m.device for m in members.values() if m.outcome not in SETTLED]
            self._require(not open_, "a finished rollout's counts add up", f"{rollout.id} {open_}")

    # --- the end ---

    def ended(self) -> None:
        look = self._world.office.store.look
        look(self._incidents)
        look(self._documents)
        look(self._kept_members)
        look(self._logs)
        look(self._settled)
        look(self._heard)
        look(self._told)

    def _incidents(self, connection: Connection) -> None:
        """Every stop that nobody asked for has an incident that says why."""
        keys = set(connection.execute(select(tables.incidents.c.key)).scalars())
        stuck = [key for key in keys if key.endswith(":stuck")]
        self._require(not stuck, "every rollout can be decided", str(stuck))
        for kept in book.listed(connection):
            rollout = kept.rollout
            if rollout.kind != "update" or rollout.cause in BY_PEOPLE or rollout.id in self._world.doubtful:
                continue
            if rollout.state in {State.ROLLED_BACK, State.ABORTED}:
                named = {f"rollout:{rollout.id}:failed", f"rollout:{rollout.id}:aborted"} & keys
                self._require(bool(named), "every automatic rollback has an incident", f"{rollout.id} {rollout.cause}")
            if rollout.state is State.ROLLED_BACK and rollout.id not in self._world.forced:
                bad = rollout.digest in self._world.quarantined()
                self._require(bad, "a release that failed the fleet is quarantined", f"{rollout.id} {rollout.cause}")
        for rollout_id in self._world.emergencies:
            known = f"review:{rollout_id}" in keys or rollout_id in self._world.doubtful
            self._require(known, "an emergency approval is reviewed", rollout_id)

    def _documents(self, connection: Connection) -> None:
        """What is published is what is assigned, and a box that can be reached obeys it."""
        query = select(tables.desired.c.device, tables.desired.c.document, tables.desired.c.generation)
        stored = {row.device: row for row in connection.execute(query)}
        wanted: dict[str, set[Any]] = defaultdict(set)
        for row in connection.execute(select(tables.assignments)):
            wanted[row.device].add((row.model, row.digest, row.rollout, row.action, tuple(row.follows.split())))
        for name, box in self._world.boxes.items():
            if box.removed or name in self._world.in_conflict():
                continue
            row = stored.get(name)
            document = parse_document(decode(row.document, SignedDesired).document) if row and row.document else None
            models = document.models if document else ()
            said = {(m.model, m.release, m.rollout, m.action, tuple(m.after or ())) for m in models}
            self._require(said == wanted[name], "what is published is what is assigned", f"{name}")
            if row is not None:
                obeyed = box.runner.generation if box.runner else 0
                same = obeyed == row.generation
                self._require(same, "the newest document reaches every box", f"{name} {obeyed} {row.generation}")

    def _kept_members(self, connection: Connection) -> None:
        members = tables.rollout_members
        for kept in book.listed(connection):
            query = select(members.c.outcome, func.count()).where(members.c.rollout == kept.rollout.id)
            counted = dict(connection.execute(query.group_by(members.c.outcome)).all())  # type: ignore[arg-type]
            true = Counter(str(member.outcome) for member in kept.rollout.members.values())
            self._require(counted == dict(true), "the kept counts are those of the members", kept.rollout.id)

    def _logs(self, connection: Connection) -> None:
        """Every outcome of a device can be explained: its rollout's log has a line about it, and it has words."""
        lines = tables.rollout_log
        said = {(row.rollout, row.device) for row in connection.execute(select(lines.c.rollout, lines.c.device))}
        for kept in book.listed(connection):
            for device, member in kept.rollout.members.items():
                if member.outcome is Outcome.WAITING:
                    continue
                told = (kept.rollout.id, device) in said
                self._require(told, "every outcome has its line", f"{kept.rollout.id} {device} {member.outcome}")
                words = bool(member.sentence) or member.outcome in {Outcome.SKIPPED, Outcome.ORDERED}
                self._require(words, "every outcome has words", f"{kept.rollout.id} {device} {member.outcome}")

    def _settled(self, connection: Connection) -> None:
        """What rollouts say runs, does."""
        held = {(r.device, r.model): r for r in connection.execute(select(tables.assignments))}
        newest: dict[tuple[str, str], Rollout] = {}
        for kept in reversed(book.listed(connection)):  # oldest first
            rollout = kept.rollout
            for device, member in rollout.members.items():
                if rollout.kind != "return" and member.ordered_at is not None:
                    newest[device, rollout.model] = rollout
        for (device, model), rollout in newest.items():
            box, order = self._world.boxes[device], held.get((device, model))
            if box.removed or device in self._world.spoilt or order is None:
                continue
            member = rollout.members[device]
            mine = order.rollout.partition(".")[0].partition("-late")[0].partition("-back")[0]
            if mine != rollout.id.partition("-late")[0]:
                continue  # something older or newer was put in force since
            took = member.outcome is Outcome.COMMITTED and member.back is Back.NO and rollout.state is State.FINISHED
            if took and member.cause != "already_there":
                same = box.serves.get(model) == order.digest
                self._require(same, "a finished rollout is what runs", f"{device} {model} {rollout.id}")
            if order.action == "rollback":
                own = order.digest == member.prior
                self._require(own, "each goes back to its own last good", f"{device} {model} {rollout.id}")
                back = box.serves.get(model) == order.digest
                self._require(back, "who was led back is back", f"{device} {model} {box.serves.get(model, '')[:4]}")

    def _told(self, connection: Connection) -> None:
        """Every transition of a box is known to the hub."""
        events = tables.events
        query = select(events.c.device, func.count()).where(events.c.name == "update.transition")
        known = dict(connection.execute(query.group_by(events.c.device)).all())  # type: ignore[arg-type]
        for name, box in self._world.boxes.items():
            if box.removed or name in self._world.spoilt or self._world.restored:
                continue
            made = box.database.look(lambda db: db.conn.execute("SELECT count(*) FROM transitions").fetchone()[0])
            same = made == known.get(name, 0)
            self._require(same, "every transition of a box is told", f"{name} {made} {known.get(name, 0)}")

    def _heard(self, connection: Connection) -> None:
        """Every fact has come, once."""
        for name, box in self._world.boxes.items():
            if box.removed or box.runner is None or name in self._world.spoilt:
                continue
            waiting = box.database.look(lambda db: sum(db.conn.execute(COUNT_WAITING).fetchone()))
            self._require(waiting == 0, "every fact reaches the hub", f"{name} {waiting}")
        rejected = connection.execute(select(tables.rejections.c.reason, tables.rejections.c.device)).all()
        bad = [r for r in rejected if not self._world.boxes[r.device].removed]
        self._require(not bad, "the hub takes whatever an agent says", str(bad[:2]))
