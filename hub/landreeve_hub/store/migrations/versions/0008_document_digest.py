"""The digest of each desired document, to know another one under the same generation."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change; documents made before have no digest and are not compared."""
    op.add_column("desired", sa.Column("digest", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("desired", "digest")
