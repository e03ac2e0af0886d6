"""The audit log's tree, checkpoints, cosignatures, witnessed logs, and what is personal in entries."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from landreeve.audit.merkle import Frontier

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")
_BATCH = 1000


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default=_EMPTY, nullable=False)


def _key(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind(), nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)


def upgrade() -> None:
    """Make the change; entries that are there keep their format and get their place in the tree."""
    op.add_column("audit", sa.Column("format", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "audit_nodes",
        _key("level", sa.Integer),
        _key("n", sa.BigInteger),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "n"),
    )
    op.create_table(
        "audit_private",
        _key("seq", sa.BigInteger),
        _key("member", sa.Text),
        _key("subject", sa.Text),
        sa.Column("box", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", "member"),
    )
    subjects = ("name", "key", "created", "erased")
    op.create_table("audit_subjects", _key("id", sa.Text), *map(_text, subjects), sa.PrimaryKeyConstraint("id"))
    op.create_index("audit_subjects_name", "audit_subjects", ["name"])
    op.create_table(
        "audit_checkpoints", _key("size", sa.BigInteger), _text("at"), _text("note"), sa.PrimaryKeyConstraint("size")
    )
    op.create_table(
        "audit_cosignatures",
        _key("size", sa.BigInteger),
        _key("witness", sa.Text),
        *map(_text, ("key", "line", "at")),
        sa.PrimaryKeyConstraint("size", "witness"),
    )
    op.create_index("audit_cosignatures_witness", "audit_cosignatures", ["witness", "size"])
    op.create_table(
        "audit_witnessed",
        _key("log", sa.Text),
        *map(_text, ("key", "note", "at")),
        *map(_count, ("epoch", "seq")),
        *map(_text, ("refused", "evidence")),
        sa.PrimaryKeyConstraint("log"),
    )
    _grow()


def _grow() -> None:
    """The subtrees of the entries written so far."""
    connection, tree = op.get_bind(), Frontier()
    nodes = sa.table("audit_nodes", sa.column("level"), sa.column("n"), sa.column("hash"))
    audit = sa.table("audit", sa.column("seq"), sa.column("hash"))
    while True:
        page = sa.select(audit.c.hash).where(audit.c.seq > tree.size).order_by(audit.c.seq).limit(_BATCH)
        hashes = connection.execute(page).scalars().all()
        made = [{"level": level, "n": n, "hash": value} for h in hashes for level, n, value in tree.append(_leaf(h))]
        if made:
            connection.execute(sa.insert(nodes), made)
        if not hashes:
            return


def _leaf(text: str) -> bytes:
    """A hash that was damaged must not keep the hub from starting: verifying says which one."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return bytes(32)


def downgrade() -> None:
    """Undo the change."""
    for table in ("witnessed", "cosignatures", "checkpoints", "subjects", "private", "nodes"):
        op.drop_table(f"audit_{table}")
    op.drop_column("audit", "format")
