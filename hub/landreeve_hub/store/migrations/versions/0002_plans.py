"""Plans told by devices, and the class of each box."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "plans",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("version", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("box_class", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("at", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("report", sa.JSON(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("device", "release"),
    )
    op.create_index("plans_release_class", "plans", ["release", "box_class"])
    # Not in a batch: SQLite would copy the whole table for a column it can simply add.
    op.add_column("devices", sa.Column("box_class", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("devices", "box_class")
    op.drop_index("plans_release_class", "plans")
    op.drop_table("plans")
