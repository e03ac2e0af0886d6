"""Where a version on probation is in its strategy, beside the newest update report of its device."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change; of probations under way the next report tells."""
    op.add_column("updates", sa.Column("stage", sa.JSON(), server_default=sa.text("'{}'"), nullable=False))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("updates", "stage")
