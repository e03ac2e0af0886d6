"""The kinds of columns that most tables are made of; each has a default, so that a later one needs no copy."""

from sqlalchemy import JSON, BigInteger, Column, Integer, Text, text

EMPTY = text("''")
_ZERO = text("0")
_OBJECT = text("'{}'")
# SQLite numbers rows by itself only for INTEGER; PostgreSQL should not run out at two thousand million.
ROW = BigInteger().with_variant(Integer, "sqlite")


def text_column(name: str) -> Column[str]:
    """A text, empty by default."""
    return Column(name, Text, nullable=False, server_default=EMPTY)


def count(name: str) -> Column[int]:
    """A whole number, 0 by default."""
    return Column(name, BigInteger, nullable=False, server_default=_ZERO)


def document(name: str) -> Column[dict[str, object]]:
    """JSON, an empty object by default."""
    return Column(name, JSON, nullable=False, server_default=_OBJECT)


def numbered() -> Column[int]:
    """``n``: counts the rows."""
    return Column("n", ROW, primary_key=True, autoincrement=True)
