"""The audit log's tables beside its entries, as `landreeve.audit` reaches them by name."""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

from landreeve_hub.store.columns import count as _count
from landreeve_hub.store.columns import text_column as _text


def declare(metadata: MetaData) -> None:
    """Put the tables on the hub's metadata."""
    _log(metadata)
    _witnessing(metadata)


def _log(metadata: MetaData) -> None:
    # Complete subtrees of the audit log's tree above its leaves: see `landreeve.audit.merkle`.
    Table(
        "audit_nodes",
        metadata,
        Column("level", Integer, primary_key=True, autoincrement=False),
        Column("n", BigInteger, primary_key=True, autoincrement=False),
        Column("hash", LargeBinary, nullable=False),
    )

    # What is personal in an entry, sealed under its subject's key.
    Table(
        "audit_private",
        metadata,
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("member", Text, primary_key=True),
        Column("subject", Text, nullable=False),
        Column("box", LargeBinary, nullable=False),
    )

    Table(
        "audit_subjects",
        metadata,
        Column("id", Text, primary_key=True),
        _text("name"),
        _text("key"),
        _text("created"),
        _text("erased"),
        Index("audit_subjects_name", "name"),
    )


def _witnessing(metadata: MetaData) -> None:
    Table(
        "audit_checkpoints",
        metadata,
        Column("size", BigInteger, primary_key=True, autoincrement=False),
        _text("at"),
        _text("note"),
    )

    Table(
        "audit_cosignatures",
        metadata,
        Column("size", BigInteger, primary_key=True, autoincrement=False),
        Column("witness", Text, primary_key=True),
        _text("key"),
        _text("line"),
        _text("at"),
        Index("audit_cosignatures_witness", "witness", "size"),
    )

    # The newest believed checkpoint of each log this hub witnesses, and the first one it refused.
    Table(
        "audit_witnessed",
        metadata,
        Column("log", Text, primary_key=True),
        _text("key"),
        _text("note"),
        _text("at"),
        _count("epoch"),
        _count("seq"),
        _text("refused"),
        _text("evidence"),
    )
