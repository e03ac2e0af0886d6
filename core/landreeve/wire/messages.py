"""Messages of contract version 1.

Every *fact* travels in a `Fact` envelope: ``(epoch, seq)`` names it for ever, so a repeat is harmless.
Unknown fields are ignored and unknown versions refused: an old agent may stay in the field for years, so a
later change adds a module beside this one and never edits it.
"""

from typing import Any, Literal

import msgspec

from landreeve.wire.plans import BoxFacts, PlanTrial, RunPlan
from landreeve.wire.schedule import LineRules, Schedule
from landreeve.wire.strategy import Strategy, TrialStage

VERSION = 1


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message; ``v`` is the contract version."""

    v: Literal[1] = 1


class Body(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what a fact says."""


class Birth(Body, frozen=True, kw_only=True, tag="birth"):
    """Said once per start of the supervisor: who I am, what box this is, what my metric columns mean.

    ``box_class`` is shared by boxes on which the same plans win; empty where it is not known. ``features`` are parts
    of orders this agent keeps to that older ones ignore (``schedule/1``, ``strategy/1``, ``after/1``).
    """

    agent: str
    site: str
    started: str
    hardware: dict[str, Any]
    metric_names: tuple[str, ...]
    metric_set: int
    certificate_expires: str
    labels: dict[str, str] = {}
    box_class: str = ""
    features: tuple[str, ...] = ()


class Event(Body, frozen=True, kw_only=True, tag="event"):
    """Something happened: a machine-readable cause and one plain sentence.

    ``name`` is dotted (``update.transition``, ``worker.restarted``, ``training.finished``, ``command.done``),
    ``subject`` what it is about (a model name, a command id).
    """

    name: str
    subject: str
    cause: str
    sentence: str
    severity: Literal["info", "warning", "error"] = "info"
    data: dict[str, Any] = {}


class UpdateReport(Body, frozen=True, kw_only=True, tag="update"):
    """One transition of the update machine on a device, with its cause. ``stage`` is where a version on probation is
    in its strategy from now on; agents that do not tell it leave it out."""

    model: str
    rollout: str
    generation: int
    release: str
    version: str
    state: str
    previous: str
    cause: str
    sentence: str
    data: dict[str, Any] = {}
    stage: TrialStage | msgspec.UnsetType = msgspec.UNSET


class Metrics(Body, frozen=True, kw_only=True, tag="metric"):
    """Columnar numbers under the names announced at birth.

    ``rows`` are ``[unix seconds, value, …]``, a value per name of ``metric_set``; null where unknown.
    """

    metric_set: int
    rows: tuple[tuple[float | None, ...], ...]


class Gap(Body, frozen=True, kw_only=True, tag="gap"):
    """Metrics dropped because the outbox was full: sequence numbers ``first`` to ``last``, ``count`` facts."""

    first: int
    last: int
    count: int


class DriftReport(Body, frozen=True, kw_only=True, tag="drift"):
    """A closed window of one model on one site: sketches, scores, and quality where labels are known.

    ``sketches`` maps a column to a sketch document (`landreeve.sketch`); groups under ``k`` rows are withheld
    on the site. ``quality`` holds ``labelled`` (rows), ``log_loss``, ``auc``, ``late_rate`` (label mean) and
    ``reference_log_loss`` where known.
    """

    model: str
    release: str
    version: str
    window: int
    first: str
    last: str
    rows: int
    scores: dict[str, float]
    thresholds: dict[str, float]
    drifted: tuple[str, ...]
    sketches: dict[str, Any]
    quality: dict[str, float] = {}
    verdict: Literal["stable", "drifted", "quality_lost", "too_little_data"]
    sentence: str


class Candidate(Body, frozen=True, kw_only=True, tag="candidate"):
    """A challenger trained on site that passed its gate: the hub may fetch it and make it a release."""

    model: str
    run: str
    manifest: str
    manifest_bytes: int
    metrics: dict[str, Any]
    reason: str
    request: str = ""


class PlanReport(Body, frozen=True, kw_only=True, tag="plan"):
    """How a release runs best on this box: what preflight tried, what won, and by how much.

    ``ratio`` is the winner's time by the default plan's (0.25 = four times as fast), ``cpu_ratio`` the same of CPU
    time; times are of one row. ``metric_value`` is the winner's on the golden set. ``hinted`` says that a hint of the
    hub named the winner before it was measured; ``hints`` how many were given. ``left_out`` trials were cut.
    """

    model: str
    release: str
    version: str
    box_class: str
    box: BoxFacts
    plan: RunPlan
    ratio: float | None = None
    cpu_ratio: float | None = None
    p50_us: float | None = None
    cpu_us: float | None = None
    metric: str = ""
    metric_value: float | None = None
    seconds: float = 0.0
    hints: int = 0
    hinted: bool = False
    source: str = ""
    trials: tuple[PlanTrial, ...] = ()
    left_out: int = 0
    sentence: str = ""


class Audit(Body, frozen=True, kw_only=True, tag="audit"):
    """Who did what on the site. ``seq`` and ``leaf`` are its place and hash in the site's own log, where it has one."""

    actor: str
    action: str
    object: str
    decision: str
    data: dict[str, Any] = {}
    seq: int = 0
    leaf: str = ""


class AuditHead(Body, frozen=True, kw_only=True, tag="audit_head"):
    """The device's own audit log as it stands, to be witnessed: its signed note (C2SP checkpoint), the proof that it
    grew from ``old`` entries, the log's key and the key it witnesses with. ``seen`` is how many entries of the hub's
    log it cosigned last: from there the hub proves its own.
    """

    key: str
    witness_key: str
    note: str
    old: int = 0
    proof: tuple[str, ...] = ()
    seen: int = 0


class Cosigned(Body, frozen=True, kw_only=True, tag="cosigned"):
    """The device's signature under a checkpoint of the hub's audit log, of ``size`` entries (C2SP cosignature)."""

    size: int
    key: str
    line: str


class LogLines(Body, frozen=True, kw_only=True, tag="log"):
    """Log lines at or above the level the hub asked for."""

    lines: tuple[str, ...]


AnyBody = (
    Birth
    | Event
    | UpdateReport
    | Metrics
    | Gap
    | DriftReport
    | Candidate
    | PlanReport
    | Audit
    | LogLines
    | AuditHead
    | Cosigned
)


class Fact(Wire, frozen=True, kw_only=True):
    """The envelope. ``epoch`` is the outbox's incarnation (unix nanoseconds of its creation), ``seq`` counts
    from 1 without a gap, ``at`` is RFC 3339 UTC of the moment the fact was created."""

    epoch: int
    seq: int
    at: str
    body: AnyBody


class Ack(Wire, frozen=True, kw_only=True):
    """The hub has committed every fact of ``epoch`` up to and including ``seq``.

    ``reads`` names what the hub can read beyond plain JSON (``zstd``). It stands in the first acknowledgement of a
    session and is left out of the others; a hub that never says it gets plain JSON. ``at`` stands there too: the
    hub's time (RFC 3339). Nobody signed it, so it is shown to people and raises no time floor.
    """

    epoch: int
    seq: int
    reads: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    at: str | msgspec.UnsetType = msgspec.UNSET


class Witness(Wire, frozen=True, kw_only=True):
    """The hub's answer to an `AuditHead`, on ``dn/<id>/witness``: its own checkpoint with the proof that it grew from
    the ``old`` entries the device had seen, and what it makes of the device's: a cosignature ``line`` under the
    checkpoint of ``size`` entries, ``want`` (a proof from that many entries on; -1: none), or why it is ``refused``.
    """

    key: str
    witness_key: str
    note: str = ""
    old: int = 0
    proof: tuple[str, ...] = ()
    size: int = 0
    line: str = ""
    want: int = -1
    refused: str = ""


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What one model does on the device now. ``keeps`` are the releases whose files it keeps to return to: serving,
    last good, first good, ordered; empty from agents that do not tell."""

    model: str
    version: str
    release: str
    state: str
    wanted: str
    used: str
    reason: str = ""
    keeps: tuple[str, ...] = ()


class DeviceState(Wire, frozen=True, kw_only=True):
    """Retained on ``up/<id>/state`` and the last will. ``session`` grows with every connection: a will of an
    older session is ignored. ``reads`` names what the device can read beyond plain JSON (``zstd``); one that does
    not say so gets plain JSON.

    ``run`` is drawn anew by each start of the supervisor and never kept: two of them that take turns are two boxes
    with one identity. ``certificate_serial`` is what the device uses now, in hex. ``metadata_days`` are the days until
    the signed metadata it believed expires, after which it installs nothing new; ``clock_ahead_s`` is its clock minus
    the hub's, as it last heard it. ``document`` is the sha256 of the text of the desired document it obeys
    (`SignedDesired.document`): under one generation a hub restored from a backup may have made another.
    """

    session: int
    online: bool
    at: str
    generation: int = 0
    models: tuple[ModelState, ...] = ()
    outbox: int = 0
    certificate_days: float = 0.0
    reads: tuple[str, ...] = ()
    run: str = ""
    certificate_serial: str = ""
    metadata_days: float | None = None
    clock_ahead_s: float | None = None
    document: str = ""


class Presence(Wire, frozen=True, kw_only=True):
    """Retained on ``dn/<id>/presence``: whether the hub hears more than one box under this identity.

    While ``doubled`` no box of that name updates itself; ``sentence`` says why and what to do.
    """

    doubled: bool
    at: str
    sentence: str = ""


class Command(Wire, frozen=True, kw_only=True):
    """A one-off action. Ignored after ``expires``; answered by an `Event` named ``command.done`` or
    ``command.refused`` whose subject is ``id``."""

    id: str
    name: str
    args: dict[str, Any]
    expires: str


class Probation(msgspec.Struct, frozen=True, kw_only=True):
    """How long, and by what, a new version proves itself on real traffic.

    Rows count answered predictions. ``max_log_loss_increase`` is the rise against the last good version on
    the same rows (nats) that is no longer accepted; ``alpha`` the chance of a false alarm over the whole
    probation.

    Before ``min_s`` nothing passes. ``max_prediction_shift`` is the largest distance (Kolmogorov-Smirnov, 0 to 1)
    between the answers and those of the last good version on the same rows, ``max_confidence_drop`` the largest loss
    of mean confidence |2p - 1| against it; ``max_memory_growth_mb`` what the worker may grow by, ``max_crashes`` how
    often it may die. A site with too little traffic to judge by rates returns to the last good version, or, with
    ``on_too_little`` ``keep``, keeps the new one when at least ``low_traffic_rows`` rows were answered and no more
    than ``low_traffic_errors`` failed.
    """

    min_rows: int = 500
    min_labelled: int = 300
    max_rows: int = 4000
    max_s: float = 86_400.0
    max_error_rate: float = 0.02
    max_latency_ratio: float = 5.0
    max_log_loss_increase: float = 0.005
    alpha: float = 0.05
    min_s: float = 0.0
    max_prediction_shift: float = 0.5
    max_confidence_drop: float = 0.3
    max_memory_growth_mb: float = 1024.0
    max_crashes: int = 5
    on_too_little: Literal["return", "keep"] = "return"
    low_traffic_rows: int = 20
    low_traffic_errors: int = 0


class DesiredModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model a device should run. ``release`` is the sha256 of its manifest.

    ``hints`` are the plans that won on boxes of the device's class, best first, as known when the order was made: to
    be tried first, gated and measured like any other.
    """

    model: str
    release: str
    version: str
    manifest_bytes: int
    rollout: str
    action: Literal["install", "rollback"] = "install"
    probation: Probation = Probation()
    hints: tuple[RunPlan, ...] = ()
    schedule: Schedule | None = None
    strategy: Strategy | None = None
    component: str | None = None
    after: tuple[str, ...] | None = None


class Desired(Wire, frozen=True, kw_only=True):
    """The whole of what a device should run. Only a higher ``generation`` counts.

    ``authorities`` are the certificates (PEM) of whom the device should trust from now on, the newest last; empty
    leaves those it learnt at enrolment. A device whose own certificate is not of the newest renews it. ``line`` takes
    the place of the site's own rules for transfers.
    """

    device: str
    generation: int
    issued: str
    models: tuple[DesiredModel, ...]
    max_facts_per_s: float | None = None
    authorities: tuple[str, ...] = ()
    line: LineRules | None = None


class SignedDesired(Wire, frozen=True, kw_only=True):
    """Retained on ``dn/<id>/desired``: the document and every piece of TUF metadata needed to believe it.

    ``director`` and ``targets`` map metadata file names (``2.root.json``, ``timestamp.json``,
    ``7.snapshot.json``, ``7.targets.json``) to their text. The director's targets name ``desired.json``
    (this ``document``) and, for each model, ``releases/<sha256>``; the targets repository names
    the same ``releases/<sha256>``: a release is installed only when both agree on digest and length.
    """

    generation: int
    document: str
    director: dict[str, str]
    targets: dict[str, str]


class Want(Wire, frozen=True, kw_only=True):
    """Blocks of an artifact still missing: bit i of ``missing`` (hex, little-endian bytes, bit 0 first) is set
    when block i is. ``bytes`` is the artifact's length, or 0 when only its digest is known.

    ``speaks`` names what else the device understands (`landreeve.wire.transfers`): with ``deltas`` it asks for an
    offer first, made from one of ``bases``, artifacts it holds, most promising first. ``report`` only tells what is
    missing and asks for nothing. ``own`` says that it does not listen to the stream for all devices.
    """

    bytes: int
    missing: str
    speaks: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    report: bool = False
    own: bool = False
