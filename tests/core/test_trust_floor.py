"""The time floor: clocks at 1970 and 2090, jumping and standing still, and signers whose clock is wrong."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.trust.anchor import install
from landreeve.trust.document import DOCUMENT_NAME, document_text
from landreeve.trust.floor import Floor, read_floor
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.messages import Desired, SignedDesired
from tuf.api.metadata import TargetFile

from tests.fakes.tuf_repository import TufRepository

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUILT = NOW - timedelta(days=60)
IN_1970, IN_2090 = datetime(1970, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Site:
    """A hub's signer and a device, each with a clock of its own, and the device's uptime."""

    def __init__(self, trust_dir: Path) -> None:
        self.director, self.targets = TufRepository(NOW), TufRepository(NOW)
        self.trust_dir = trust_dir
        self.uptime_s = 0.0
        self.generation = 0
        self.hub_clock = NOW
        install(trust_dir, {"director": self.director.roots[0], "targets": self.targets.roots[0]}, NOW - DAY)
        self.start()

    def start(self) -> None:
        """A new process on the device."""
        self.verifier = DesiredVerifier(self.trust_dir, "d-1", BUILT, lambda: self.uptime_s)

    def order(self) -> SignedDesired:
        self.generation += 1
        desired = Desired(device="d-1", generation=self.generation, issued=self.hub_clock.isoformat(), models=())
        document = document_text(desired)
        self.director.targets.targets = {
            DOCUMENT_NAME: TargetFile.from_data(DOCUMENT_NAME, document.encode(), ["sha256"])
        }
        for one in (self.director, self.targets):
            one.issued = self.hub_clock
            one.timestamp.expires = one.snapshot.expires = self.hub_clock + 14 * DAY
        files = {"director": self.director.publish(), "targets": self.targets.publish()}
        return SignedDesired(generation=self.generation, document=document, **files)

    def sees(self, signed: SignedDesired, clock: datetime) -> Believed | Cause:
        verdict = self.verifier.verify(signed, clock)
        return verdict.cause if isinstance(verdict, Rejected) else verdict

    @property
    def kept(self) -> datetime:
        return read_floor(self.trust_dir, BUILT)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "trust")


def test_clock_at_1970_installs_nothing_until_it_is_set(site: Site) -> None:
    signed = site.order()
    assert site.sees(signed, IN_1970) is Cause.CLOCK_BEHIND
    assert "1970-01-01 00:00" in site.verifier.clock_problem(IN_1970)
    assert isinstance(site.sees(signed, NOW), Believed)
    assert site.verifier.clock_problem(NOW) == ""


def test_clock_at_2090_installs_nothing_and_leaves_no_trace(site: Site) -> None:
    signed = site.order()
    verdict = site.verifier.verify(signed, IN_2090)
    assert isinstance(verdict, Rejected)
    assert verdict.cause is Cause.EXPIRED
    assert "this box's clock (2090-01-01 00:00 UTC)" in verdict.sentence
    assert site.kept == NOW - DAY
    assert isinstance(site.sees(signed, NOW), Believed)
    assert site.kept <= NOW


def test_signer_in_2090_cannot_lock_the_fleet_out_however_often_it_signs(site: Site) -> None:
    site.hub_clock = IN_2090
    for day in range(5):
        assert isinstance(site.sees(site.order(), NOW + day * DAY), Believed)
        assert site.kept <= NOW + day * DAY
    site.hub_clock = NOW + 5 * DAY
    assert isinstance(site.sees(site.order(), NOW + 5 * DAY), Believed)


def test_both_clocks_in_2090_change_nothing_since_the_offline_root_has_expired_there(site: Site) -> None:
    site.hub_clock = IN_2090
    assert site.sees(site.order(), IN_2090) is Cause.EXPIRED
    site.hub_clock = NOW
    assert isinstance(site.sees(site.order(), NOW), Believed)


def test_clock_jumping_back_while_running_is_judged_by_the_uptime(site: Site) -> None:
    frozen = site.order()
    assert isinstance(site.sees(frozen, NOW), Believed)
    site.uptime_s += (15 * DAY).total_seconds()
    assert site.sees(frozen, NOW) is Cause.CLOCK_BEHIND
    assert site.sees(frozen, NOW + 14 * DAY + DAY / 2) is Cause.EXPIRED
    site.hub_clock = NOW + 15 * DAY
    assert isinstance(site.sees(site.order(), NOW + 15 * DAY), Believed)


def test_clock_jumping_forwards_and_back_while_running(site: Site) -> None:
    for clock, expected in ((IN_2090, Cause.EXPIRED), (IN_1970, Cause.CLOCK_BEHIND)) * 2:
        site.uptime_s += 60
        signed = site.order()
        assert site.sees(signed, clock) is expected
        assert isinstance(site.sees(signed, NOW + timedelta(seconds=site.uptime_s)), Believed)


def test_floor_outlives_a_restart_and_rises_with_what_the_process_ran(site: Site) -> None:
    assert isinstance(site.sees(site.order(), NOW), Believed)
    site.uptime_s += (3 * DAY).total_seconds()
    assert isinstance(site.sees(site.order(), NOW + 3 * DAY), Believed)
    site.start()
    assert site.kept == NOW + 3 * DAY
    assert site.sees(site.order(), NOW + DAY) is Cause.CLOCK_BEHIND


moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
# In 64ths of a second, which floats add without an error: the sums below are compared to the microsecond.
uptimes = st.integers(0, 64 * 10**8).map(lambda count: count / 64)
steps = st.tuples(moments, moments, uptimes, st.booleans())


@given(st.lists(steps, max_size=12))
@settings(max_examples=60, deadline=None)
def test_floor_never_falls_and_never_passes_the_own_clock_but_by_uptime(
    history: list[tuple[datetime, datetime, float, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        trust, uptime = Path(name), [0.0]
        floor = Floor(trust, BUILT, lambda: uptime[0])
        allowed = BUILT
        for issued, clock, ran, restarts in history:
            before = floor.earliest()
            uptime[0] += ran
            allowed = max(allowed + timedelta(seconds=ran), clock)
            assert floor.earliest() >= before
            floor.learn(issued, clock)
            assert before <= floor.earliest() <= allowed
            if restarts:
                kept = read_floor(trust, BUILT)
                floor = Floor(trust, BUILT, lambda: uptime[0])
                assert floor.earliest() == kept >= BUILT
