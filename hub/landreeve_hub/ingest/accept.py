"""Which facts count: each once, in whatever order they come. Pure.

A device numbers its facts from 1 without a gap, keeps at most a window of them in flight and repeats them until
the hub acknowledges *cumulatively*. So the hub keeps, for each (device, epoch), the number up to which it has
everything, and the few beyond it that came early; those count at once and are never applied again.

The device replaces metrics it had to drop by one `Gap` whose number is the last it stands for. It may have sent
the metric of that number before: then the gap comes as a repeat, and still says which numbers will never come.

A fact whose envelope can be read but whose body cannot (a type this hub does not know yet) is refused and kept
with its bytes, and its number counts: it must not hold up everything behind it for ever. Bytes without a
readable envelope, or of another contract version, have no number: the device keeps them until a hub can read them.
"""

from dataclasses import dataclass, replace

from landreeve.wire.messages import Gap

MAX_AHEAD = 1000
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """What the hub has of one epoch: everything up to ``seq``, the numbers ``above`` it, and the ranges of
    ``gaps`` (first, last) that reach above it."""

    seq: int = 0
    above: frozenset[int] = frozenset()
    gaps: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Apply:
    """The fact is new: apply it, then this is the progress."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Repeat:
    """The fact has counted already. The progress may still grow, when it is a gap."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Reject:
    """The fact cannot count; the reason is for people."""

    reason: str


def decide(progress: Progress, epoch: int, seq: int, gap: Gap | None = None) -> Apply | Repeat | Reject:
    """What becomes of the fact with that number.

    >>> decide(Progress(seq=4), 1, 6)
    Apply(progress=Progress(seq=4, above=frozenset({6}), gaps=frozenset()))
    >>> decide(Progress(seq=4, above=frozenset({6})), 1, 5)
    Apply(progress=Progress(seq=6, above=frozenset(), gaps=frozenset()))
    """
    problem = _problem(progress, epoch, seq, gap)
    if problem:
        return Reject(problem)
    known = seq <= progress.seq or seq in progress.above
    if gap is not None and gap.last > progress.seq:
        progress = replace(progress, gaps=progress.gaps | {(gap.first, gap.last)})
    if known:
        return Repeat(_advance(progress))
    return Apply(_advance(replace(progress, above=progress.above | {seq})))


def _problem(progress: Progress, epoch: int, seq: int, gap: Gap | None) -> str:
    if not 0 < epoch <= _MAX_NUMBER:
        return f"epoch {epoch}: expected the outbox's creation in unix nanoseconds"
    if not 0 < seq <= _MAX_NUMBER:
        return f"seq {seq}: numbers count from 1"
    if gap is not None and not (0 < gap.first <= gap.last <= seq and gap.count == gap.last - gap.first + 1):
        return f"gap {gap.first} to {gap.last} of {gap.count} facts at number {seq}: it must name every number it drops"
    if len(progress.above) >= MAX_AHEAD and seq > progress.seq + 1 and seq not in progress.above:
        return f"seq {seq}: {MAX_AHEAD} facts already wait for number {progress.seq + 1}; send that first"
    return ""


def _advance(progress: Progress) -> Progress:
    """Move over everything that has come or never will, and forget what lies behind."""
    seq, before = progress.seq, -1
    while seq != before:
        before = seq
        while seq + 1 in progress.above:
            seq += 1
        seq = max([seq, *(last for first, last in progress.gaps if first <= seq + 1)])
    above = frozenset(number for number in progress.above if number > seq)
    return Progress(seq, above, frozenset(gap for gap in progress.gaps if gap[1] > seq))
