"""Artifacts on their way to devices: what is wanted, in which order, to whom, how fast. Pure.

Blocks that several devices lack go once to the shared topic; what one alone lacks goes to that one. A device's
newest want replaces its former: it says what is *still* missing. Devices that report while they fetch set the pace of
the shared stream; one that is too slow for it gets its own. Of the others nothing is known, and only the hub's total
rate holds them back.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from landreeve_hub.registry.pacing import PATIENCE_S, QUANTILE, REPORT_S, Advance, Pace, middle, report_s

LEAST_PER_S, START_PER_S, MOST_PER_S = 0.5, 64.0, 16_384.0
# A device that has told nothing for so long is left; it asks again.
FORGET_S = 60.0


@dataclass(frozen=True, slots=True)
class Piece:
    """The next block to send. ``device`` is empty for the shared topic."""

    digest: str
    index: int
    device: str


@dataclass(slots=True)
class _Taker:
    """One device and one artifact, as bitmaps: what is to be sent, and what it lacked when it last told."""

    pending: int
    missing: int
    told_at: float
    reports: bool
    own: Pace | None = None
    advance: Advance | None = None
    late_since: float | None = None
    stalled: bool = False

    @property
    def under_way(self) -> int:
        return (self.missing & ~self.pending).bit_count()

    def has_room(self, pace: Pace) -> bool:
        return not self.reports or pace.room(self.under_way)


@dataclass(slots=True)
class _Artifact:
    """Who takes it and how fast. ``order`` says as the how manieth each block last left."""

    takers: dict[str, _Taker] = field(default_factory=dict)
    pace: Pace = field(default_factory=lambda: Pace(START_PER_S, LEAST_PER_S, MOST_PER_S))
    order: dict[int, int] = field(default_factory=dict)
    sent: int = 0
    judged_at: float = 0.0
    middle: float = 0.0

    def shared(self) -> dict[str, _Taker]:
        return {device: taker for device, taker in self.takers.items() if taker.own is None}

    def note(self, index: int) -> None:
        self.sent += 1
        self.order[index] = self.sent


@dataclass(slots=True)
class Demand:
    """Who wants which blocks. Artifacts take turns, so a large one does not hold up a small one.

    ``now`` is monotonic seconds.
    """

    _artifacts: dict[str, _Artifact] = field(default_factory=dict)
    _outcasts: list[tuple[str, str]] = field(default_factory=list)

    def want(
        self,
        device: str,
        digest: str,
        missing: frozenset[int] | int,
        now: float = 0.0,
        *,
        reports: bool = False,
        own: bool = False,
    ) -> None:
        """The blocks a device still lacks of an artifact, all of which it waits for: their numbers, or a bitmap."""
        if not missing:
            self.drop(device, digest)
            return
        # The first to report must not set the pace for all: others came with it.
        artifact = self._artifacts.setdefault(digest, _Artifact(judged_at=now + REPORT_S / 2))
        bits = _bits(missing)
        former = artifact.takers.get(device)
        if former is not None and reports and self._is_mere_pause(former, bits):
            self.report(device, digest, missing, now)
            return
        pace = former.own if former is not None else None
        if own and pace is None:
            pace = _own_pace(artifact.pace.rate)
        artifact.takers[device] = _Taker(bits, bits, now, reports, pace)

    def report_s(self, digest: str) -> float:
        """How often the takers of an artifact should report."""
        artifact = self._artifacts.get(digest)
        return report_s(len(artifact.takers) if artifact is not None else 1)

    def report(self, device: str, digest: str, missing: frozenset[int] | int, now: float) -> None:
        """What a device lacks in the middle of a transfer; of what is not being sent here it changes nothing.

        What left before a block that arrived is lost, since blocks keep their order, and is sent again.
        """
        artifact = self._artifacts.get(digest)
        taker = artifact.takers.get(device) if artifact is not None else None
        if artifact is None or taker is None:
            return
        bits = _bits(missing)
        arrived = taker.missing & ~bits
        lost = _lost(artifact.order, bits & ~taker.pending, arrived)
        speed = arrived.bit_count() / max(now - taker.told_at, 1e-3)
        if taker.advance is not None:
            speed = (speed + taker.advance.arrived_per_s) / 2
        taker.pending = (taker.pending & bits) | lost
        taker.missing, taker.told_at, taker.reports = bits, now, True
        taker.advance = Advance(speed, taker.under_way, lost.bit_count())
        taker.stalled = taker.stalled and not arrived
        if not bits:
            self.drop(device, digest)
        if taker.own is not None:
            taker.own.judge({device: taker.advance})
            return
        if now - artifact.judged_at >= REPORT_S:
            self._judge(artifact, now)
        self._part(device, digest, artifact, taker, now)

    def drop(self, device: str, digest: str) -> None:
        """The device wants nothing of it any more."""
        artifact = self._artifacts.get(digest)
        if artifact is not None:
            artifact.takers.pop(device, None)
            if not artifact.takers:
                del self._artifacts[digest]

    def next(self, now: float = 0.0) -> Piece | None:
        """The block to send now: the one most devices lack next, of artifacts in turn; it counts as sent. None when
        none is due."""
        for digest, artifact in self._artifacts.items():
            piece = _of_shared(digest, artifact, now) or _of_own(digest, artifact, now)
            if piece is not None:
                artifact.note(piece.index)
                self._artifacts[digest] = self._artifacts.pop(digest)
                self._forget_served(digest, artifact)
                return piece
        return None

    def wait(self, now: float) -> float | None:
        """Seconds until a block is due; None when none will be before somebody says something."""
        due = [at for artifact in self._artifacts.values() for at in _dues(artifact)]
        return max(0.0, min(due) - now) if due else None

    def outcasts(self) -> list[tuple[str, str]]:
        """Device and artifact of those that got a stream of their own since last asked, and must be told."""
        told, self._outcasts = self._outcasts, []
        return told

    def forget(self, now: float) -> None:
        """Leave devices that have not been heard of for long; they ask again when they come back."""
        for digest in list(self._artifacts):
            for device, taker in list(self._artifacts[digest].takers.items()):
                if taker.reports and now - taker.told_at > FORGET_S:
                    self.drop(device, digest)

    @staticmethod
    def _is_mere_pause(taker: _Taker, bits: int) -> bool:
        """Whether a want only says that nothing came for a moment, while blocks are on their way through a slow line.
        Said twice without any arriving in between, they are lost."""
        if not taker.reports or not taker.under_way or bits & ~taker.missing:
            return False
        pause = bool(taker.missing & ~bits) or not taker.stalled
        taker.stalled = True
        return pause

    @staticmethod
    def _judge(artifact: _Artifact, now: float) -> None:
        """By those who told since the last time: what others told before was about another pace."""
        told = {
            device: taker.advance
            for device, taker in artifact.shared().items()
            if taker.advance is not None and taker.told_at > artifact.judged_at
        }
        artifact.judged_at = now
        artifact.pace.judge(told)
        artifact.middle = middle(told) if not artifact.middle else (artifact.middle + middle(told)) / 2

    def _part(self, device: str, digest: str, artifact: _Artifact, taker: _Taker, now: float) -> None:
        """Give a device that was too slow for a while its own stream; one alone has it already."""
        shared = len(artifact.shared())
        # Without a bound the slow end of those who stay would go, and again, until everybody had a stream.
        spared = len(artifact.takers) - shared < QUANTILE * len(artifact.takers)
        if taker.advance is None or not artifact.pace.is_too_fast_for(taker.advance, artifact.middle, spared=spared):
            taker.late_since = None
            return
        if taker.late_since is None:
            taker.late_since = now
        if now - taker.late_since >= PATIENCE_S and shared > 1:
            taker.own = _own_pace(taker.advance.arrived_per_s)
            self._outcasts.append((device, digest))

    def _forget_served(self, digest: str, artifact: _Artifact) -> None:
        for device, taker in list(artifact.takers.items()):
            if not taker.pending and not taker.reports:
                self.drop(device, digest)


def _of_shared(digest: str, artifact: _Artifact, now: float) -> Piece | None:
    takers = artifact.shared()
    paced = any(taker.reports for taker in takers.values())
    if paced and not artifact.pace.may_send(now):
        return None
    lowest = [taker.pending & -taker.pending for taker in takers.values() if _may_take(taker, artifact.pace)]
    if not lowest:
        return None
    counts = {bit: sum(1 for taker in takers.values() if taker.pending & bit) for bit in set(lowest)}
    bit = min(counts, key=lambda bit: (-counts[bit], bit))
    lacking = [device for device, taker in takers.items() if taker.pending & bit]
    for device in lacking:
        takers[device].pending ^= bit
    if paced:
        artifact.pace.sent(now)
    return Piece(digest, bit.bit_length() - 1, lacking[0] if len(lacking) == 1 else "")


def _of_own(digest: str, artifact: _Artifact, now: float) -> Piece | None:
    for device, taker in artifact.takers.items():
        if taker.own is not None and taker.own.may_send(now) and _may_take(taker, taker.own):
            bit = taker.pending & -taker.pending
            taker.pending ^= bit
            taker.own.sent(now)
            return Piece(digest, bit.bit_length() - 1, device)
    return None


def _may_take(taker: _Taker, pace: Pace) -> bool:
    return bool(taker.pending) and taker.has_room(pace)


def _dues(artifact: _Artifact) -> list[float]:
    due = [taker.own.next_at for taker in artifact.takers.values() if taker.own and _may_take(taker, taker.own)]
    shared = artifact.shared().values()
    if any(_may_take(taker, artifact.pace) for taker in shared):
        due.append(artifact.pace.next_at if any(taker.reports for taker in shared) else 0.0)
    return due


def _lost(order: dict[int, int], gone: int, arrived: int) -> int:
    """Of the blocks that are gone and not there, those that left before the last one that arrived."""
    if not gone or not arrived:
        return 0
    last = max((order.get(index, 0) for index in _indices(arrived)), default=0)
    return _bits(index for index in _indices(gone) if order.get(index, 0) < last)


def _own_pace(rate: float) -> Pace:
    return Pace(min(MOST_PER_S, max(LEAST_PER_S, rate)), LEAST_PER_S, MOST_PER_S)


def _bits(indices: Iterable[int] | int) -> int:
    if isinstance(indices, int):
        return indices
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits


def _indices(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
