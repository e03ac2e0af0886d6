"""What refers to a release: bills of materials, served to OCI clients as referrers."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "referrers",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("artifact_type", sa.Text(), nullable=False),
        sa.Column("created", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("content_digest", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("referrers_subject", "referrers", ["subject"])


def downgrade() -> None:
    """Undo the change."""
    op.drop_index("referrers_subject", "referrers")
    op.drop_table("referrers")
