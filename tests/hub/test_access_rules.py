"""Who may do what, and how secrets are kept."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landreeve_hub.access import identity, setup, tokens, users
from landreeve_hub.access.limiter import Limiter
from landreeve_hub.access.passwords import BadPasswordError, hash_password, matches
from landreeve_hub.access.roles import MATRIX, Permission, Role, allowed
from landreeve_hub.access.separation import Approved, Denied, judge
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import select

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


def test_every_role_is_in_the_matrix() -> None:
    assert set(MATRIX) == set(Role)


def test_every_permission_is_held_by_someone_besides_the_admin_or_is_the_admins_own() -> None:
    held = {p for role, permissions in MATRIX.items() if role is not Role.ADMIN for p in permissions}
    assert set(Permission) - held == {Permission.USERS, Permission.EMERGENCY}


def test_nobody_but_the_admin_both_proposes_and_approves() -> None:
    both = {r for r, p in MATRIX.items() if {Permission.PROPOSE, Permission.APPROVE} <= p}
    assert both == {Role.ADMIN}


def test_scopes_only_narrow() -> None:
    assert not allowed(Role.VIEWER, Permission.USERS, frozenset({"users"}))
    assert not allowed(Role.ADMIN, Permission.USERS, frozenset({"view"}))


def test_proposer_is_never_the_approver() -> None:
    assert isinstance(judge("ann", "ann", Role.APPROVER, NOW), Denied)
    assert judge("ann", "bob", Role.APPROVER, NOW) == Approved()


def test_emergency_is_the_admins_and_reviewed_within_a_day() -> None:
    assert isinstance(judge("ann", "ann", Role.APPROVER, NOW, "down"), Denied)
    assert judge("ann", "ann", Role.ADMIN, NOW, "down") == Approved(NOW + timedelta(hours=24))
    assert isinstance(judge("ann", "ann", Role.ADMIN, NOW, "  "), Denied)


def test_short_password_is_refused() -> None:
    with pytest.raises(BadPasswordError, match="use 12 to 1024"):
        hash_password("short")


def test_password_is_kept_as_argon2id() -> None:
    stored = hash_password("correct horse battery")
    assert stored.startswith("$argon2id$")
    assert matches(stored, "correct horse battery")
    assert not matches(stored, "correct horse batterz")
    assert not matches("", "correct horse battery")


def test_limiter_lets_in_again_after_its_window() -> None:
    limiter = Limiter(max_failures=2, window_s=10)
    limiter.failed("a", 0.0)
    limiter.failed("a", 4.0)
    assert limiter.wait_s("a", 5.0) == 5.0
    assert limiter.wait_s("b", 5.0) == 0.0
    assert limiter.wait_s("a", 11.0) == 0.0


async def test_no_secret_is_stored_in_clear(store: Store) -> None:
    def make(connection):
        users.ensure(connection, "ann", Role.VIEWER, NOW)
        token = tokens.create(connection, "ann", "ci", scopes=[], days=1, now=NOW)
        return token, identity.open_session(connection, "ann", NOW)

    token, session = await store.write(make)
    hashes = await store.read(
        lambda c: [
            *c.execute(select(tables.tokens.c.hash)).scalars(),
            *c.execute(select(tables.sessions.c.hash)).scalars(),
        ]
    )
    assert token not in hashes
    assert session not in hashes
    assert (await store.read(lambda c: identity.by_token(c, token, NOW))).name == "ann"


async def test_setup_code_works_once_and_not_after_a_day(store: Store) -> None:
    first, second = await setup.issue_code(store, NOW), await setup.issue_code(store, NOW)
    assert await store.write(lambda c: setup.redeem_code(c, first.lower(), NOW)) == "admin"
    assert await store.write(lambda c: setup.redeem_code(c, first, NOW)) is None
    assert await store.write(lambda c: setup.redeem_code(c, second, NOW + timedelta(hours=25))) is None


async def test_admin_token_is_kept_while_it_is_valid(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "run" / "admin-token"
    await tokens.ensure_admin_token(store, path, NOW)
    first = path.read_text()
    await tokens.ensure_admin_token(store, path, NOW)
    assert path.read_text() == first
    assert path.stat().st_mode & 0o777 == 0o600
    await tokens.ensure_admin_token(store, path, NOW + timedelta(days=400))
    assert path.read_text() != first


async def test_session_ends_after_twelve_hours_however_busy(store: Store) -> None:
    def make(connection):
        users.ensure(connection, "ann", Role.VIEWER, NOW)
        return identity.open_session(connection, "ann", NOW)

    secret = await store.write(make)
    late = NOW + timedelta(hours=12, minutes=1)
    await store.write(lambda c: identity.touch_session(c, secret, late))
    assert await store.read(lambda c: identity.by_session(c, secret, late)) is None
