"""Blobs that no release needs, releases whose files were removed, and what was asked of each device in a day."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change; nothing was found needless or asked for yet."""
    op.create_table(
        "needless_blobs",
        sa.Column("digest", sa.Text(), primary_key=True),
        sa.Column("age_s", sa.Float(), nullable=False),
    )
    op.create_table(
        "upload_charges",
        sa.Column("device", sa.Text(), primary_key=True),
        sa.Column("digest", sa.Text(), primary_key=True),
        sa.Column("at", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
    )
    op.create_index("upload_charges_at", "upload_charges", ["at"])
    op.add_column("releases", sa.Column("purged", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("releases", "purged")
    op.drop_table("upload_charges")
    op.drop_table("needless_blobs")
