"""What comes first on a device, beside each order."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change; orders given before come after nothing."""
    op.add_column("assignments", sa.Column("follows", sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("assignments", "follows")
