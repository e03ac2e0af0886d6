"""Incarnations of a site, every certificate issued, and boxes that wait for a person."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_EMPTY = sa.text("''")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default=_EMPTY, nullable=False)


def upgrade() -> None:
    """Make the change."""
    op.add_column("devices", sa.Column("incarnation", sa.BigInteger(), server_default=sa.text("1"), nullable=False))
    for name in ("replaces", "replaced_by", "ended", "ended_reason"):
        op.add_column("devices", _text(name))
    op.add_column("devices", sa.Column("runs", sa.JSON(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("enrolment_tokens", sa.Column("replaces", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("enrolment_tokens", _text("withdrawn"))
    _certificates()
    op.create_table(
        "enrolment_requests",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        *(_text(name) for name in ("fingerprint", "address", "replaces", "asked", "seen", "state", "decided")),
        _text("decided_by"),
        sa.PrimaryKeyConstraint("device"),
    )


def _certificates() -> None:
    """The table, with what the devices hold now: who issued it is not known, and was the only authority then."""
    names = ("issuer", "key", "issued", "expires", "revoked", "reason")
    op.create_table(
        "certificates",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        *(_text(name) for name in names),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_index("ix_certificates_device", "certificates", ["device"])
    op.execute(
        "INSERT INTO certificates (serial, device, issued, expires, revoked, reason) "
        "SELECT certificate_serial, id, enrolled, certificate_expires, "
        "CASE WHEN revoked THEN enrolled ELSE '' END, CASE WHEN revoked THEN 'revoked' ELSE '' END "
        "FROM devices WHERE certificate_serial <> ''"
    )


def downgrade() -> None:
    """Undo the change."""
    op.drop_table("enrolment_requests")
    op.drop_index("ix_certificates_device", "certificates")
    op.drop_table("certificates")
    for name in ("withdrawn", "replaces"):
        op.drop_column("enrolment_tokens", name)
    for name in ("runs", "ended_reason", "ended", "replaced_by", "replaces", "incarnation"):
        op.drop_column("devices", name)
