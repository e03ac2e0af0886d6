"""What the hub keeps about blobs beside the releases they belong to."""

from sqlalchemy import BigInteger, Column, Float, Index, MetaData, Table, Text

from landreeve_hub.store.columns import text_column as _text


def declare(metadata: MetaData) -> tuple[Table, Table]:
    """Put the tables on the hub's metadata."""
    # Blobs that no release needed at the last look, and for how long that was seen (`landreeve_hub.registry.garbage`).
    needless = Table(
        "needless_blobs",
        metadata,
        Column("digest", Text, primary_key=True),
        Column("age_s", Float, nullable=False),
    )

    # What was asked of each device within a day, against its quota (`landreeve_hub.registry.quota`).
    charges = Table(
        "upload_charges",
        metadata,
        Column("device", Text, primary_key=True),
        Column("digest", Text, primary_key=True),
        _text("at"),
        Column("bytes", BigInteger, nullable=False),
        Index("upload_charges_at", "at"),
    )
    return needless, charges
