"""The audit log: what was written stays as written, or `verify` says where it does not."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from alembic import command
from landreeve.audit import keys, merkle
from landreeve_hub.audit.entry import Act, Tampered, Verified
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.migrate import configuration
from sqlalchemy import Connection, create_engine, delete, event, update

from tests.hub.conftest import on_sqlite

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


async def written(store: Store, keys: Path, count: int = 5) -> AuditLog:
    log = AuditLog(store, keys)
    for number in range(count):
        await log.record(NOW, Act("ann", "rollout.pause", f"r-{number}", data={"why": "é", "share": 0.5}))
    await log.checkpoint(NOW)
    return log


async def test_untouched_log_verifies(store: Store, tmp_path: Path) -> None:
    log = await written(store, tmp_path / "keys")
    answer = await log.verify()
    assert isinstance(answer, Verified)
    assert (answer.entries, answer.checkpoint) == (5, 5)


async def test_edited_entry_is_found(store: Store, tmp_path: Path) -> None:
    log = await written(store, tmp_path / "keys")
    await store.write(lambda c: c.execute(update(tables.audit).where(tables.audit.c.seq == 3).values(actor="bob")))
    assert await log.verify() == Tampered(3, "entry 3 was changed after it was written.")


async def test_deleted_entry_is_found(store: Store, tmp_path: Path) -> None:
    log = await written(store, tmp_path / "keys")
    await store.write(lambda c: c.execute(delete(tables.audit).where(tables.audit.c.seq == 2)))
    assert await log.verify() == Tampered(2, "entry 2 is missing; the next one found is 3.")


async def test_truncated_log_is_found_against_the_checkpoint(store: Store, tmp_path: Path) -> None:
    log = await written(store, tmp_path / "keys")
    await store.write(lambda c: c.execute(delete(tables.audit).where(tables.audit.c.seq > 3)))
    assert await log.verify() == Tampered(4, "2 of 5 entries are gone from the end of the log.")


async def test_log_rewritten_as_a_whole_is_found_against_the_checkpoint(store: Store, tmp_path: Path) -> None:
    await written(store, tmp_path / "keys")
    await store.write(lambda c: c.execute(delete(tables.audit)))
    again = AuditLog(store, tmp_path / "keys")
    for number in range(5):
        await again.record(NOW, Act("eve", "rollout.pause", f"r-{number}"))
    answer = await again.verify()
    assert isinstance(answer, Tampered)
    assert "rewritten after the checkpoint of that size" in answer.sentence


async def test_checkpoint_of_another_key_is_not_believed(store: Store, tmp_path: Path) -> None:
    log = await written(store, tmp_path / "keys")
    (tmp_path / "keys" / "audit.pem").unlink()
    stranger = AuditLog(store, tmp_path / "keys")
    assert isinstance(await stranger.verify(), Tampered)
    assert isinstance(await log.verify(), Verified)


async def test_tampered_log_is_not_sealed_again(store: Store, tmp_path: Path) -> None:
    log = await written(store, tmp_path / "keys")
    await store.write(lambda c: c.execute(delete(tables.audit).where(tables.audit.c.seq > 3)))
    before = log.newest_checkpoint()
    assert await log.checkpoint(NOW) == before


async def test_key_is_readable_by_the_owner_alone(store: Store, tmp_path: Path) -> None:
    await written(store, tmp_path / "keys", 1)
    assert (tmp_path / "keys" / "audit.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "audit.checkpoint").stat().st_mode & 0o777 == 0o600


def test_tree_hash_is_that_of_rfc_6962() -> None:
    """Vectors of the Certificate Transparency reference implementation."""
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    hashed = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in leaves]
    assert merkle.root(merkle.Memory(), 0).hex() == hashlib.sha256(b"").hexdigest()
    assert merkle.Memory(hashed[:1]).root().hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert merkle.Memory(hashed).root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@on_sqlite
async def test_log_of_before_the_tree_stays_verifiable_and_grows_on(tmp_path: Path) -> None:
    """A database of migration 0002, with entries of the old format and a checkpoint of the old shape."""
    old = OldHub(tmp_path)
    old.write(5)
    store = Store(tmp_path / "hub.db")
    log = AuditLog(store, tmp_path / "keys", "landreeve-hub/demo")
    answer = await log.verify()
    assert isinstance(answer, Verified)
    assert (answer.entries, answer.checkpoint) == (5, 5)
    await log.record(NOW, Act("ann", "rollout.pause", "r-9"))
    sealed = await log.checkpoint(NOW)
    assert sealed is not None
    assert sealed.size == 6
    assert isinstance(await log.verify(), Verified)
    shown = await log.listed(0, 10)
    assert [entry.actor for entry in shown[:2]] == ["ann", "ann"]
    assert [entry.format for entry in shown[:2]] == [1, 0]
    await store.write(lambda c: c.execute(update(tables.audit).where(tables.audit.c.seq == 2).values(actor="bob")))
    assert await log.verify() == Tampered(2, "entry 2 was changed after it was written.")
    store.close()


async def test_erased_person_is_gone_from_the_database_and_the_log_still_verifies(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    log = await written(store, tmp_path / "keys")
    assert {entry.actor for entry in await log.listed(0, 10)} == {"ann"}
    found = await store.write(lambda c: log.erase_in(c, NOW, "ann", "dpo"))
    assert (found["entries"], found["plain"]) == (5, 0)
    assert isinstance(await log.verify(), Verified)
    shown = await log.listed(0, 10)
    assert [(entry.actor, entry.action) for entry in shown[:2]] == [
        ("dpo", "audit.erase"),
        ("(erased)", "rollout.pause"),
    ]
    kept = await store.read(lambda c: str(c.exec_driver_sql("SELECT * FROM audit").all()))
    kept += await store.read(lambda c: str(c.exec_driver_sql("SELECT name, key FROM audit_subjects").all()))
    assert "ann" not in kept
    assert "rollout.pause" in kept
    with pytest.raises(LookupError):
        await store.write(lambda c: log.erase_in(c, NOW, "ann", "dpo"))
    store.close()


@on_sqlite
@pytest.mark.parametrize("keys", [(), (bytes(32),)], ids=["plain", "sealed"])
async def test_what_is_erased_is_overwritten_whatever_sqlite_does_by_default(
    tmp_path: Path, keys: tuple[bytes, ...]
) -> None:
    if keys:
        pytest.importorskip("sqlcipher3")
    store = Store(tmp_path / "hub.db", keys=keys)
    assert await store.write(lambda c: c.exec_driver_sql("PRAGMA secure_delete").scalar_one()) == 1
    store.close()


async def test_sealing_reads_no_more_the_longer_the_log_is(tmp_path: Path) -> None:
    """Counted in statements: O(new + log n)."""
    store = Store(tmp_path / "hub.db")
    log = AuditLog(store, tmp_path / "keys")
    counts = []
    for _ in range(3):
        await store.write(lambda c: [log.record_in(c, NOW, Act("hub", "a", "o")) for _ in range(300)])
        await log.checkpoint(NOW)
        await log.record(NOW, Act("hub", "a", "o"))
        seen: list[str] = []

        def count(c: Connection, seen: list[str] = seen) -> None:
            event.listen(c, "before_cursor_execute", lambda *a: seen.append(a[2]))

        await store.write(count)
        await log.checkpoint(NOW)
        counts.append(len(seen))
    assert max(counts) <= min(counts) + 12
    store.close()


class OldHub:
    """Writes a database and keys as the hub of before this log did."""

    def __init__(self, root: Path) -> None:
        self.root = root
        engine = create_engine(f"sqlite:///{root / 'hub.db'}")
        config = configuration()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0002")
        self.engine = engine

    def write(self, count: int) -> None:
        prev, leaves = "0" * 64, []
        with self.engine.begin() as connection:
            for seq in range(1, count + 1):
                members = {"seq": seq, "at": "2026-05-01T00:00:00Z", "actor": "ann", "action": "a", "object": "o",
                           "decision": "allowed", "data": {"share": 0.5, "why": "é"}, "prev": prev}  # fmt: skip
                prev = merkle.leaf_hash(msgspec.json.encode(members, order="sorted")).hex()
                leaves.append(bytes.fromhex(prev))
                row = {**members, "data": msgspec.json.encode(members["data"]).decode(), "hash": prev}
                names = ", ".join(row)
                connection.exec_driver_sql(
                    f"INSERT INTO audit ({names}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608
                    tuple(row.values()),
                )
        self.engine.dispose()
        root = merkle.Memory(leaves).root().hex()
        private = keys.load(self.root / "keys", "old").log
        signature = private.sign(f"landreeve-hub/audit\n{count}\n{root}\n2026-05-01T00:00:00Z\n".encode()).hex()
        document = {"size": count, "root": root, "at": "2026-05-01T00:00:00Z", "signature": signature}
        (self.root / "keys" / "audit.checkpoint").write_bytes(msgspec.json.encode(document))
