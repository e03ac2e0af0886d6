"""The audit log: what was written stays as written, or `verify` says where it does not."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve.audit import merkle
from landreeve_hub.audit.entry import Act, Tampered, Verified
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import delete, update

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
