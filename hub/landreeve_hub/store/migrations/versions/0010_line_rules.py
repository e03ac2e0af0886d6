"""What the line of one site may carry of artifacts."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default=sa.text("''"), nullable=False)


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "line_rules",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("bytes_per_hour", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("windows", sa.JSON(), server_default=sa.text("'[]'"), nullable=False),
        _text("zone"),
        _text("at"),
        _text("by"),
        sa.PrimaryKeyConstraint("site"),
    )


def downgrade() -> None:
    """Undo the change."""
    op.drop_table("line_rules")
