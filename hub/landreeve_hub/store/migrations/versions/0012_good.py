"""What a device says it returns to, beside its newest update report."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change; of reports that came before, the device's own state tells."""
    for name in ("good", "good_version"):
        op.add_column("updates", sa.Column(name, sa.Text(), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    """Undo the change."""
    for name in ("good", "good_version"):
        op.drop_column("updates", name)
