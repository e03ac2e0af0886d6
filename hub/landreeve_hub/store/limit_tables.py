"""What devices and sites are held to, beside what the settings say for all."""

from sqlalchemy import JSON, BigInteger, Column, Float, MetaData, Table, Text, text

from landreeve_hub.store.columns import text_column as _text


def rates(metadata: MetaData) -> Table:
    """Facts a second asked of one device (`scope` device, `name` its id) or of all with a label (label, key=value)."""
    return Table(
        "rates",
        metadata,
        Column("scope", Text, primary_key=True),
        Column("name", Text, primary_key=True),
        Column("facts_per_s", Float, nullable=False),
        _text("at"),
        _text("by"),
    )


def line_rules(metadata: MetaData) -> Table:
    """What the line of one site may carry of artifacts; `windows` are texts as people write them."""
    return Table(
        "line_rules",
        metadata,
        Column("site", Text, primary_key=True),
        Column("bytes_per_hour", BigInteger, nullable=False, server_default=text("0")),
        Column("windows", JSON, nullable=False, server_default=text("'[]'")),
        _text("zone"),
        _text("at"),
        _text("by"),
    )
