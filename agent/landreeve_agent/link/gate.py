"""The gate every artifact passes, down and up: it holds transfers back while the site's rules say so.

What is let through is charged in the store before it travels, so a kill never gives an hour's budget twice.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from landreeve.wire.messages import Event
from landreeve.wire.schedule import LineRules, fault_of_windows, fault_of_zone, parse_window
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.config import TransferSettings
from landreeve_agent.link.allowance import (
    SMALLEST_BYTES,
    Go,
    Held,
    Spent,
    allowed_by,
    charged,
    is_limited,
    soonest,
    spent_in,
)
from landreeve_agent.store.database import Database

logger = logging.getLogger(__name__)

_SPENT = "link.spent"
LOOK_S = 15.0
AHEAD_BYTES = 1024 * 1024

Say = Callable[[str], None]


class Gate:
    """One site's line. ``rules`` and ``zone`` are the box's own settings; the hub may add rules, and whichever allows
    less holds.

    ``held`` is why transfers wait now; empty while they do not. ``doubt`` is what is wrong with the settings.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        rules: LineRules,
        zone: str,
        tell: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.held = ""
        self.doubt = ""
        self._database = database
        self._clock = clock
        self._own = rules
        self._rules: tuple[LineRules, ...] = (rules,)
        self._zone = zone
        self._tell = tell
        self._turn = asyncio.Lock()
        self._ahead = Spent()

    def sentences(self) -> tuple[str, ...]:
        """What people should know of the line now."""
        return tuple(text for text in (self.held, self.doubt) if text)

    @property
    def limited(self) -> bool:
        """Whether anything is ever held back."""
        return any(map(is_limited, self._rules))

    def add(self, rules: LineRules | None) -> None:
        """The hub's rules beside the box's own; None for none. Rules nobody could keep are left."""
        if rules is not None and (fault := _fault(rules)):
            logger.warning("rules for the line that cannot be kept: %s", fault)
            rules = None
        self._rules = (self._own,) if rules is None else (self._own, rules)

    async def take(self, wanted: int, say: Say) -> int:
        """How many of the wanted bytes may travel, once any may; they count as spent. ``say`` hears why it waits."""
        while True:
            async with self._turn:
                verdict = await self._try(wanted)
            if isinstance(verdict, Go):
                self.held = ""
                return verdict.bytes
            self._hold(verdict)
            say(verdict.sentence)
            await asyncio.sleep(soonest(verdict.until, self._clock(), LOOK_S))

    async def _try(self, wanted: int) -> Go | Held:
        """Charges a little ahead, so that small pieces cost no write each."""
        now = self._clock()
        ahead = spent_in(self._ahead, now).bytes
        if ahead >= min(wanted, SMALLEST_BYTES):
            windows = [LineRules(windows=rules.windows, zone=rules.zone) for rules in self._rules]
            inside = allowed_by(windows, self._zone, Spent(), wanted, now)
            if isinstance(inside, Held):
                return inside
            granted = min(ahead, wanted)
            self._ahead = Spent(self._ahead.hour, ahead - granted)
            return Go(granted)
        spent = await self._database.read(_load)
        verdict = allowed_by(self._rules, self._zone, spent, max(wanted, AHEAD_BYTES), now)
        if isinstance(verdict, Held) or not any(rules.bytes_per_hour for rules in self._rules):
            return Go(wanted) if isinstance(verdict, Go) else verdict
        await self._database.write(lambda db: _save(db, charged(spent, verdict.bytes, now)))
        granted = min(wanted, verdict.bytes)
        self._ahead = charged(Spent(), ahead + verdict.bytes - granted, now)
        return Go(granted)

    def _hold(self, verdict: Held) -> None:
        if verdict.sentence == self.held:
            return
        self.held = verdict.sentence
        data = {"until": verdict.until.isoformat(timespec="seconds")}
        sentence = verdict.sentence
        self._tell(Event(name="transfer.held", subject="line", cause="line_rules", sentence=sentence, data=data))


def site_gate(
    database: Database, clock: Callable[[], datetime], transfer: TransferSettings, tell: Callable[[Event], None]
) -> Gate:
    """The gate as the box's settings want it."""
    zone, doubt = zone_of(transfer.zone)
    windows = tuple(parse_window(text) for text in transfer.windows)
    gate = Gate(database, clock, LineRules(bytes_per_hour=int(transfer.mb_per_hour * 1e6), windows=windows), zone, tell)
    gate.doubt = doubt
    return gate


def zone_of(name: str) -> tuple[str, str]:
    """The zone of that name, or UTC and why; an empty name is the machine's own, as far as it has one."""
    if name:
        return ("UTC", f"transfer.zone {fault}; UTC is used") if (fault := fault_of_zone(name)) else (name, "")
    _, _, local = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")
    return ("UTC" if not local or fault_of_zone(local) else local), ""


def _fault(rules: LineRules) -> str:
    return fault_of_windows(rules.windows) or (fault_of_zone(rules.zone) if rules.zone else "")


def _load(db: SqliteDatabase) -> Spent:
    row = db.conn.execute("SELECT value FROM meta WHERE key = ?", (_SPENT,)).fetchone()
    hour, _, count = str(row[0]).partition(":") if row else ("0", "", "0")
    return Spent(int(hour), int(count))


def _save(db: SqliteDatabase, spent: Spent) -> None:
    db.conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_SPENT, f"{spent.hour}:{spent.bytes}"))
