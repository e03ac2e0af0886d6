"""One token, one box: minting and redeeming against a real store."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from landreeve.trust.certs import describe
from landreeve.trust.token import EnrolmentToken, parse_token
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.fleet import incarnation, waiting
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.enrolment import (
    Asked,
    BadSiteError,
    Enrolled,
    Reason,
    Refused,
    Rules,
    Waiting,
    hash_of,
    mint,
    redeem,
)
from landreeve_hub.store.database import Store
from landreeve_hub.store.tables import assignments, certificates, desired, devices, enrolment_tokens
from sqlalchemy import Row, insert, select, update

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(hours=24)
EASY = Rules()


class Office:
    """A hub's enrolment desk."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "hub.db")
        self.authority = Authority(folder)
        self.authority.init(NOW)
        self.audit = AuditLog(self.store, folder / "keys")

    async def mint(
        self, site: str = "ewr", ttl: timedelta = DAY, labels: dict[str, str] | None = None, replaces: bool = False
    ) -> EnrolmentToken:
        known = {"url": "https://hub:8443", "ca_fingerprint": self.authority.ca_fingerprint}
        text = await mint(self.store, site, labels or {}, ttl, NOW, **known, replaces=replaces)
        return parse_token(text)

    async def redeem(self, secret: str, csr: str, now: datetime = NOW) -> Enrolled | Refused:
        answer = await self.ask(secret, csr, now)
        assert not isinstance(answer, Waiting)
        return answer

    async def ask(
        self, secret: str, csr: str, now: datetime = NOW, rules: Rules = EASY, generation: int = 0
    ) -> Enrolled | Waiting | Refused:
        asked = Asked(secret, csr, generation, "192.0.2.7")
        return await redeem(
            self.store, self.authority, asked, now, fleet="demo", record=self.audit.record_in, rules=rules
        )

    async def acts(self, device: str) -> list[tuple[str, str, dict[str, object]]]:
        entries = await self.audit.listed(0, 100)
        return [(one.actor, one.action, one.data) for one in entries[::-1] if one.object == device]

    async def device(self, device: str) -> "Row[tuple[object, ...]]":
        return await self.store.read(lambda c: c.execute(select(devices).where(devices.c.id == device)).one())


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None, name: str = "hub") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    yield office
    office.store.close()


def reason(answer: Enrolled | Waiting | Refused) -> Reason:
    assert isinstance(answer, Refused)
    assert answer.sentence.endswith(".")
    return answer.reason


async def test_token_becomes_a_device_with_its_site_and_labels(office: Office) -> None:
    token = await office.mint(labels={"region": "east"})
    answer = await office.redeem(token.secret, request())
    assert isinstance(answer, Enrolled)
    assert (token.site, token.url, token.ca) == ("ewr", "https://hub:8443", office.authority.ca_fingerprint)
    row = await office.device(answer.device)
    assert (row.site, row.fleet, row.labels, row.revoked) == ("ewr", "demo", {"region": "east"}, False)
    assert row.certificate_serial == describe(answer.certificate.encode()).serial
    assert answer.expires - NOW == timedelta(days=90)


async def test_certificate_names_the_device_whatever_the_request_asks_for(office: Office) -> None:
    token = await office.mint()
    answer = await office.redeem(token.secret, request(name="hub"))
    assert isinstance(answer, Enrolled)
    assert describe(answer.certificate.encode()).common_name == answer.device
    assert answer.device.startswith("d-")
    assert len(answer.device) == 14


async def test_token_used_twice_by_another_box_is_refused(office: Office) -> None:
    token = await office.mint()
    assert isinstance(await office.redeem(token.secret, request()), Enrolled)
    assert reason(await office.redeem(token.secret, request())) is Reason.USED


async def test_of_two_boxes_at_once_exactly_one_gets_in(office: Office) -> None:
    token = await office.mint()
    answers = await asyncio.gather(*(office.redeem(token.secret, request()) for _ in range(4)))
    assert sum(isinstance(answer, Enrolled) for answer in answers) == 1


async def test_box_whose_answer_was_lost_gets_the_same_identity(office: Office) -> None:
    token, csr = await office.mint(), request()
    first, again = await office.redeem(token.secret, csr), await office.redeem(token.secret, csr)
    assert isinstance(first, Enrolled)
    assert isinstance(again, Enrolled)
    assert (first.device, first.again, again.device, again.again) == (first.device, False, first.device, True)
    assert (await office.device(first.device)).certificate_serial == describe(again.certificate.encode()).serial


async def test_every_certificate_given_out_is_in_the_audit_log_and_nothing_refused_is(office: Office) -> None:
    token, csr = await office.mint(), request()
    first, again = await office.redeem(token.secret, csr), await office.redeem(token.secret, csr)
    assert isinstance(first, Enrolled)
    assert isinstance(again, Enrolled)
    assert reason(await office.redeem(token.secret, request())) is Reason.USED
    spare = await office.mint(replaces=True)
    new = await office.redeem(spare.secret, request())
    assert isinstance(new, Enrolled)
    actor = f"site:{first.device}:enrolment"
    given = await office.acts(first.device)
    assert [(by, action) for by, action, _ in given] == [(actor, "device.enrol"), (actor, "device.enrol-again")]
    assert [data["serial"] for _, _, data in given] == [
        describe(answer.certificate.encode()).serial for answer in (first, again)
    ]
    ((_, _, data),) = await office.acts(new.device)
    assert (data["site"], data["replaces"]) == ("ewr", first.device)
    assert len(await office.audit.listed(0, 100)) == 3


async def test_revoked_box_gets_no_second_certificate(office: Office) -> None:
    token, csr = await office.mint(), request()
    first = await office.redeem(token.secret, csr)
    assert isinstance(first, Enrolled)
    await office.store.write(lambda c: c.execute(update(devices).values(revoked=True)).rowcount)
    assert reason(await office.redeem(token.secret, csr)) is Reason.USED


async def test_expired_token_is_refused_at_its_last_moment(office: Office) -> None:
    token = await office.mint(ttl=timedelta(hours=1))
    assert reason(await office.redeem(token.secret, request(), NOW + timedelta(hours=1))) is Reason.EXPIRED


async def test_unknown_secret_is_refused(office: Office) -> None:
    await office.mint()
    assert reason(await office.redeem("x" * 22, request())) is Reason.UNKNOWN


async def test_refusal_leaves_the_token_usable(office: Office) -> None:
    token = await office.mint()
    assert reason(await office.redeem(token.secret, "no request")) is Reason.BAD_REQUEST
    assert isinstance(await office.redeem(token.secret, request()), Enrolled)


async def test_same_key_never_becomes_two_devices(office: Office) -> None:
    first, second, csr = await office.mint("ewr"), await office.mint("jfk"), request()
    assert isinstance(await office.redeem(first.secret, csr), Enrolled)
    assert reason(await office.redeem(second.secret, csr)) is Reason.KEY_IN_USE


async def test_two_tokens_for_one_site_enrol_one_box_and_a_person_decides_about_the_other(office: Office) -> None:
    first, second = await office.mint(), await office.mint()
    inside = await office.redeem(first.secret, request())
    assert isinstance(inside, Enrolled)
    other = await office.ask(second.secret, request())
    assert isinstance(other, Waiting)
    assert f"would replace {inside.device} at ewr" in other.sentence
    assert not (await office.device(inside.device)).revoked
    with pytest.raises(BadSiteError, match="--replace"):
        await office.mint()


def wrong_curve() -> str:
    return request(ec.generate_private_key(ec.SECP384R1()))


def rsa_key() -> str:
    return request(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def broken_signature() -> str:
    lines = request().splitlines()
    lines[-2] = lines[-2][:-12] + "AAAAAAAAAA" + lines[-2][-2:]
    return "\n".join(lines)


def too_long() -> str:
    return request() + " " * 20_000


@pytest.mark.parametrize("make", [wrong_curve, rsa_key, broken_signature, too_long, str])
async def test_wrong_request_is_refused_with_its_reason(office: Office, make: type[str]) -> None:
    token = await office.mint()
    answer = await office.redeem(token.secret, make())
    assert reason(answer) is Reason.BAD_REQUEST


@pytest.mark.parametrize("site", ["", "a/b", "#", "+", "..", "-a", "x" * 65, "name with space", "naïve"])
async def test_bad_site_name_is_refused_before_a_token_exists(office: Office, site: str) -> None:
    with pytest.raises(BadSiteError, match=r"site: .*is no identifier"):
        await office.mint(site)
    assert await office.store.read(lambda c: c.execute(select(enrolment_tokens)).all()) == []


async def test_token_that_lives_too_long_is_refused(office: Office) -> None:
    with pytest.raises(BadSiteError, match="ttl"):
        await office.mint(ttl=timedelta(days=8))


def leaked(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


async def test_secret_is_stored_only_as_its_hash(office: Office, tmp_path: Path) -> None:
    token = await office.mint()
    rows = await office.store.read(lambda c: c.execute(select(enrolment_tokens)).all())
    assert [row.hash for row in rows] == [hash_of(token.secret)]
    assert not leaked(tmp_path, token.secret)
    assert token.secret not in repr(token)


# A person decides -------------------------------------------------------------------------------------------------

CAREFUL = Rules(approval=True)


async def decide(office: Office, device: str, *, approved: bool) -> None:
    await office.store.write(lambda c: waiting.decide_in(c, device, approved=approved, by="ann", now=NOW) and None)


async def test_box_waits_until_a_person_has_compared_its_key(office: Office) -> None:
    token, csr = await office.mint(), request()
    asked = await office.ask(token.secret, csr, rules=CAREFUL)
    assert isinstance(asked, Waiting)
    (shown,) = await office.store.read(waiting.listed)
    assert (shown["site"], shown["fingerprint"], shown["address"]) == ("ewr", asked.fingerprint, "192.0.2.7")
    assert await office.ask(token.secret, csr, rules=CAREFUL) == asked
    await decide(office, asked.device, approved=True)
    # The token may run out while a person is away; the person's word stands.
    answer = await office.ask(token.secret, csr, NOW + timedelta(days=3), CAREFUL)
    assert isinstance(answer, Enrolled)
    assert answer.device == asked.device
    assert await office.store.read(waiting.listed) == []


async def test_denied_box_and_its_token_are_out_for_good(office: Office) -> None:
    token, csr = await office.mint(), request()
    asked = await office.ask(token.secret, csr, rules=CAREFUL)
    assert isinstance(asked, Waiting)
    await decide(office, asked.device, approved=False)
    assert reason(await office.ask(token.secret, csr, rules=CAREFUL)) is Reason.DENIED
    assert reason(await office.ask(token.secret, request(), rules=CAREFUL)) is Reason.CLAIMED
    with pytest.raises(waiting.NotWaitingError, match="was denied already"):
        await decide(office, asked.device, approved=True)


async def test_nobody_slips_in_with_the_token_of_a_waiting_box(office: Office) -> None:
    token, csr = await office.mint(), request()
    asked = await office.ask(token.secret, csr, rules=CAREFUL)
    assert isinstance(asked, Waiting)
    thief = await office.ask(token.secret, request(), rules=CAREFUL)
    assert isinstance(thief, Refused)
    assert thief.reason is Reason.CLAIMED
    await decide(office, asked.device, approved=True)
    assert isinstance(await office.ask(token.secret, request(), rules=CAREFUL), Refused)
    assert isinstance(await office.ask(token.secret, csr, rules=CAREFUL), Enrolled)


async def test_approval_with_one_token_opens_no_door_with_another(office: Office) -> None:
    first, second, csr = await office.mint("ewr"), await office.mint("jfk"), request()
    asked = await office.ask(first.secret, csr, rules=CAREFUL)
    assert isinstance(asked, Waiting)
    await decide(office, asked.device, approved=True)
    for _ in range(3):
        assert isinstance(await office.ask(second.secret, csr, rules=CAREFUL), Waiting)
    (shown,) = await office.store.read(waiting.listed)
    assert (shown["site"], shown["state"]) == ("jfk", "waiting")


async def test_denied_box_may_ask_again_with_a_new_token(office: Office) -> None:
    first, csr = await office.mint(), request()
    asked = await office.ask(first.secret, csr, rules=CAREFUL)
    assert isinstance(asked, Waiting)
    await decide(office, asked.device, approved=False)
    second = await office.mint("jfk")
    for _ in range(2):
        assert isinstance(await office.ask(second.secret, csr, rules=CAREFUL), Waiting)
    await decide(office, asked.device, approved=True)
    assert isinstance(await office.ask(second.secret, csr, rules=CAREFUL), Enrolled)


# A site's next box ------------------------------------------------------------------------------------------------


async def order(office: Office, device: str) -> None:
    row = {"device": device, "model": "delay", "digest": "a" * 64, "version": "v1", "rollout": "r-1"}
    await office.store.write(lambda c: c.execute(insert(assignments), [row]) and None)


async def test_re_imaged_box_is_a_new_incarnation_and_the_old_one_is_over(office: Office) -> None:
    old = await office.redeem((await office.mint(labels={"region": "east"})).secret, request())
    assert isinstance(old, Enrolled)
    await order(office, old.device)
    token = await office.mint(labels={"rack": "7"}, replaces=True)
    new = await office.ask(token.secret, request(), generation=41)
    assert isinstance(new, Enrolled)
    assert (new.site, new.replaced) == ("ewr", old.device)
    former, present = await office.device(old.device), await office.device(new.device)
    assert (former.site, former.revoked, former.replaced_by, former.ended_reason) == (
        "ewr~1",
        True,
        new.device,
        "superseded",
    )
    assert (present.site, present.incarnation, present.replaces) == ("ewr", 2, old.device)
    number = select(desired.c.generation).where(desired.c.device == new.device)
    assert await office.store.read(lambda c: c.execute(number).scalar_one()) == 41
    assert present.labels == {"region": "east", "rack": "7"}
    orders = await office.store.read(lambda c: c.execute(select(assignments.c.device)).scalars().all())
    assert orders == [new.device]
    revoked = await office.store.read(
        lambda c: c.execute(select(certificates.c.device).where(certificates.c.revoked != "")).scalars().all()
    )
    assert revoked == [old.device]


async def test_replacement_of_a_replacement_keeps_every_history_apart(office: Office) -> None:
    await office.redeem((await office.mint()).secret, request())
    for _ in range(2):
        assert isinstance(await office.redeem((await office.mint(replaces=True)).secret, request()), Enrolled)
    rows = await office.store.read(lambda c: c.execute(select(devices).order_by(devices.c.incarnation)).all())
    assert [(row.site, row.incarnation, row.revoked) for row in rows] == [
        ("ewr~1", 1, True),
        ("ewr~2", 2, True),
        ("ewr", 3, False),
    ]
    assert [row.replaced_by for row in rows] == [rows[1].id, rows[2].id, ""]


async def test_revocation_takes_the_tokens_of_the_site_with_it(office: Office) -> None:
    first, spare = await office.mint(), await office.mint()
    inside = await office.redeem(first.secret, request())
    assert isinstance(inside, Enrolled)
    await office.store.write(lambda c: incarnation.end_in(c, inside.device, NOW, "revoked"))
    assert reason(await office.redeem(spare.secret, request())) is Reason.WITHDRAWN
    assert reason(await office.redeem(first.secret, request())) is Reason.WITHDRAWN
