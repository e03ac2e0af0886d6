"""A row for each device of a rollout, and the devices that changed, numbered."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ROWS = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, default: str = "''") -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default=sa.text(default), nullable=False)


def _document(name: str) -> sa.Column[dict[str, object]]:
    return sa.Column(name, sa.JSON(), server_default=sa.text("'{}'"), nullable=False)


def upgrade() -> None:
    """Make the change; members of old rollouts move out of their documents."""
    op.create_table(
        "rollout_members",
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("place", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        _text("outcome"),
        _text("back"),
        _text("changed"),
        _document("doc"),
        sa.PrimaryKeyConstraint("rollout", "device"),
    )
    op.create_index("rollout_members_device", "rollout_members", ["device"])
    op.create_table(
        "device_changes",
        sa.Column("n", _ROWS, autoincrement=True, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("device", name="device_changes_device"),
        sqlite_autoincrement=True,
    )
    op.add_column("rollouts", _text("kind", "'update'"))
    op.add_column("rollouts", _text("watch_until"))
    op.add_column("rollout_log", _text("device"))
    op.create_index("rollout_log_device", "rollout_log", ["device"])
    op.add_column("assignments", _document("schedule"))
    op.add_column("assignments", _document("strategy"))
    op.add_column("updates", _document("told"))
    op.add_column("devices", _text("features"))
    _move_members(op.get_bind())


def _move_members(connection: sa.Connection) -> None:
    json, text = sa.JSON(), sa.Text()
    rollouts = sa.table("rollouts", sa.column("id", text), sa.column("doc", json), sa.column("created", text))
    columns = ("rollout", "device", "outcome", "back", "changed")
    members = sa.table(
        "rollout_members", *(sa.column(n, text) for n in columns), sa.column("place"), sa.column("doc", json)
    )
    log = sa.table("rollout_log", sa.column("n"), sa.column("data", json), sa.column("device", text))
    for row in connection.execute(sa.select(rollouts)).all():
        doc = dict(row.doc)
        rows = [
            {
                "rollout": row.id,
                "device": one["device"],
                "place": place,
                "outcome": one.get("outcome", ""),
                "back": one.get("back", ""),
                "changed": one.get("heard") or row.created,
                "doc": one,
            }
            for place, one in enumerate(doc.pop("members", ()))
        ]
        if rows:
            connection.execute(sa.insert(members), rows)
        connection.execute(sa.update(rollouts).where(rollouts.c.id == row.id).values(doc=doc))
    for line in connection.execute(sa.select(log)).all():
        if device := (line.data or {}).get("device"):
            connection.execute(sa.update(log).where(log.c.n == line.n).values(device=device))


def downgrade() -> None:
    """Undo the change; members move back into their documents."""
    connection, json, text = op.get_bind(), sa.JSON(), sa.Text()
    rollouts = sa.table("rollouts", sa.column("id", text), sa.column("doc", json))
    members = sa.table("rollout_members", sa.column("rollout", text), sa.column("place"), sa.column("doc", json))
    for row in connection.execute(sa.select(rollouts)).all():
        query = sa.select(members.c.doc).where(members.c.rollout == row.id).order_by(members.c.place)
        doc = {**row.doc, "members": list(connection.execute(query).scalars())}
        connection.execute(sa.update(rollouts).where(rollouts.c.id == row.id).values(doc=doc))
    op.drop_column("devices", "features")
    op.drop_column("updates", "told")
    op.drop_column("assignments", "strategy")
    op.drop_column("assignments", "schedule")
    op.drop_index("rollout_log_device", "rollout_log")
    op.drop_column("rollout_log", "device")
    op.drop_column("rollouts", "watch_until")
    op.drop_column("rollouts", "kind")
    op.drop_table("device_changes")
    op.drop_index("rollout_members_device", "rollout_members")
    op.drop_table("rollout_members")
