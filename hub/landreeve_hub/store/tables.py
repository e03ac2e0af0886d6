"""The hub's tables, as SQLAlchemy Core sees them on SQLite and PostgreSQL.

Times are text (`landreeve_hub.store.moment`), documents are JSON, and no table holds a raw row of a site.
A change here needs a migration beside it; a test compares the two.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from landreeve_hub.store import audit_tables, blob_tables, limit_tables
from landreeve_hub.store.columns import EMPTY, ROW
from landreeve_hub.store.columns import count as _count
from landreeve_hub.store.columns import document as _document
from landreeve_hub.store.columns import numbered as _numbered
from landreeve_hub.store.columns import text_column as _text

metadata = MetaData()

devices = Table(
    "devices",
    metadata,
    Column("id", Text, primary_key=True),
    _text("fleet"),
    Column("site", Text, nullable=False, unique=True),
    _text("state"),
    _document("labels"),
    _text("enrolled"),
    _text("certificate_serial"),
    _text("certificate_expires"),
    Column("online", Boolean, nullable=False, server_default=false()),
    _count("session"),
    _text("last_seen"),
    _count("generation"),
    _document("hardware"),
    _text("agent"),
    _document("doc"),
    Column("revoked", Boolean, nullable=False, server_default=false()),
    _text("box_class"),
    # A site outlives its boxes: each new key is a new incarnation, linked to the one before and after it.
    Column("incarnation", BigInteger, nullable=False, server_default=text("1")),
    _text("replaces"),
    _text("replaced_by"),
    _text("ended"),
    _text("ended_reason"),
    # Which processes have spoken under this name (`landreeve_hub.fleet.doubles`).
    _document("runs"),
    # Parts of orders its agent keeps to that older ones ignore, joined by spaces.
    _text("features"),
)

# Every certificate a device was ever given: who holds which serial number, and which of them are revoked.
certificates = Table(
    "certificates",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("device", Text, nullable=False, index=True),
    _text("issuer"),
    _text("key"),
    _text("issued"),
    _text("expires"),
    _text("revoked"),
    _text("reason"),
)

# Boxes that wait until a person has compared their key's fingerprint. `device` is the id the box will have.
enrolment_requests = Table(
    "enrolment_requests",
    metadata,
    Column("device", Text, primary_key=True),
    Column("token", Text, nullable=False),
    Column("site", Text, nullable=False),
    _text("fingerprint"),
    _text("address"),
    _text("replaces"),
    _text("asked"),
    _text("seen"),
    _text("state"),
    _text("decided"),
    _text("decided_by"),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("hash", Text, primary_key=True),
    _text("site"),
    _document("labels"),
    Column("expires", Text, nullable=False),
    _text("used_at"),
    _text("device"),
    Column("replaces", Boolean, nullable=False, server_default=false()),
    _text("withdrawn"),
)

# Every accepted fact, once. `body` is empty where the fact's effect holds all of it (metrics, drift windows).
facts = Table(
    "facts",
    metadata,
    Column("device", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    _text("type"),
    _text("at"),
    _text("received"),
    _document("body"),
)

highwater = Table(
    "highwater",
    metadata,
    Column("device", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    _count("seq"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("device", Text, primary_key=True),
    _count("facts"),
    _count("duplicates"),
    _count("rejected"),
)

gaps = Table(
    "gaps",
    metadata,
    Column("device", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    _count("first"),
    _count("last"),
    _count("count"),
    _text("at"),
)

rejections = Table(
    "rejections",
    metadata,
    _numbered(),
    _text("device"),
    _text("at"),
    _text("reason"),
    Column("bytes", LargeBinary, nullable=False, server_default=EMPTY),
)

rates = limit_tables.rates(metadata)
line_rules = limit_tables.line_rules(metadata)

# What the columns of a device's metrics mean; announced at birth.
metric_sets = Table(
    "metric_sets",
    metadata,
    Column("device", Text, primary_key=True),
    Column("set", BigInteger, primary_key=True),
    Column("names", JSON, nullable=False),
)

# One row for each device, metric set and minute (unix minutes); `values` is zstd of JSON rows.
metrics = Table(
    "metrics",
    metadata,
    Column("device", Text, primary_key=True),
    Column("minute", BigInteger, primary_key=True),
    Column("set", BigInteger, primary_key=True),
    Column("values", LargeBinary, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    _document("definition"),
    _text("created"),
)

releases = Table(
    "releases",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("manifest_bytes", Integer, nullable=False),
    _document("config"),
    _text("created"),
    _text("created_by"),
    _text("approved_by"),
    _text("source_device"),
    _text("source_run"),
    # When its files were removed, since nothing needed them any more.
    _text("purged"),
    UniqueConstraint("model", "version", name="releases_model_version"),
)

# Documents about a release that came after it, each with the OCI manifest whose subject the release is.
referrers = Table(
    "referrers",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("artifact_type", Text, nullable=False),
    _text("created"),
    Column("manifest", LargeBinary, nullable=False),
    Column("content_digest", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("referrers_subject", "subject"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("digest", Text, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    _text("model"),
    _text("device"),
    _document("request"),
    _text("state"),
    _document("metrics"),
    _text("at"),
    _text("digest"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("digest", Text, nullable=False),
    _text("version"),
    Column("state", Text, nullable=False),
    _document("doc"),
    _text("created"),
    _text("created_by"),
    _text("approved_by"),
    Column("kind", Text, nullable=False, server_default=text("'update'")),
    _text("watch_until"),
)

# A rollout's devices, one row each: a tick writes those that moved. `place` is the order within the rollout.
rollout_members = Table(
    "rollout_members",
    metadata,
    Column("rollout", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    _count("place"),
    _text("outcome"),
    _text("back"),
    _text("changed"),
    _document("doc"),
    Index("rollout_members_device", "device"),
)

rollout_log = Table(
    "rollout_log",
    metadata,
    _numbered(),
    Column("rollout", Text, nullable=False, index=True),
    _text("at"),
    _text("cause"),
    _text("sentence"),
    _document("data"),
    _text("device"),
    Index("rollout_log_device", "device"),
)

# The devices of which anything a rollout looks at changed, numbered as it happened; triggers write it
# (`landreeve_hub.store.changes`), so that no writer can forget it.
device_changes = Table(
    "device_changes",
    metadata,
    _numbered(),
    Column("device", Text, nullable=False),
    UniqueConstraint("device", name="device_changes_device"),
    sqlite_autoincrement=True,  # a number is never given twice, even when the newest row goes
)

assignments = Table(
    "assignments",
    metadata,
    Column("device", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    _text("version"),
    _text("rollout"),
    _text("action"),
    _document("probation"),
    _document("schedule"),
    _document("strategy"),
    # Components that come first on the device, their names with a space between.
    _text("follows"),
)

desired = Table(
    "desired",
    metadata,
    Column("device", Text, primary_key=True),
    _count("generation"),
    Column("document", LargeBinary, nullable=False),
    _text("content_hash"),
    _text("signed_at"),
    _text("digest"),
)

updates = Table(
    "updates",
    metadata,
    Column("device", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    _count("generation"),
    _text("state"),
    _text("version"),
    _text("release"),
    _text("rollout"),
    _text("cause"),
    _text("sentence"),
    _text("at"),
    _count("epoch"),
    _count("seq"),
    _document("told"),
    _text("good"),
    _text("good_version"),
    _document("stage"),
)

# The newest report of each device on how a release runs best there.
plans = Table(
    "plans",
    metadata,
    Column("device", Text, primary_key=True),
    Column("release", Text, primary_key=True),
    _text("model"),
    _text("version"),
    _text("box_class"),
    _text("at"),
    _count("epoch"),
    _count("seq"),
    _document("report"),
    Index("plans_release_class", "release", "box_class"),
)

windows = Table(
    "windows",
    metadata,
    Column("device", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("window", BigInteger, primary_key=True),
    _text("release"),
    _text("version"),
    _text("first"),
    _text("last"),
    _count("rows"),
    _document("report"),
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    _text("opened"),
    _text("closed"),
    _text("severity"),
    _text("cause"),
    _text("sentence"),
    _document("subject"),
)

incident_log = Table(
    "incident_log",
    metadata,
    _numbered(),
    Column("incident", Text, nullable=False, index=True),
    _text("at"),
    _text("actor"),
    _text("action"),
    _text("sentence"),
    _document("data"),
)

users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    _text("password_hash"),
    _text("totp"),
    _text("created"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("user", Text, nullable=False),
    _text("name"),
    Column("scopes", JSON, nullable=False),
    _text("expires"),
    _text("created"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("user", Text, nullable=False),
    _text("created"),
    _text("seen"),
)

setup_codes = Table(
    "setup_codes",
    metadata,
    Column("hash", Text, primary_key=True),
    _text("expires"),
    _text("used"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", ROW, primary_key=True, autoincrement=False),
    _text("at"),
    _text("actor"),
    _text("action"),
    _text("object"),
    _text("decision"),
    _document("data"),
    _text("prev"),
    _text("hash"),
    Column("format", Integer, nullable=False, server_default=text("0")),
)

audit_tables.declare(metadata)
needless_blobs, upload_charges = blob_tables.declare(metadata)

commands = Table(
    "commands",
    metadata,
    Column("id", Text, primary_key=True),
    Column("device", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    _document("args"),
    _text("at"),
    _text("expires"),
    Column("answer", JSON(none_as_null=True), nullable=True),
)

events = Table(
    "events",
    metadata,
    _numbered(),
    _text("at"),
    _text("device"),
    _text("name"),
    _text("subject"),
    _text("severity"),
    _text("sentence"),
    _document("data"),
    Index("events_device_n", "device", "n"),
    Index("events_name_n", "name", "n"),
)

log_lines = Table(
    "log_lines",
    metadata,
    _numbered(),
    Column("device", Text, nullable=False, index=True),
    _text("at"),
    _text("line"),
)
