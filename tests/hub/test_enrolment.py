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
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.enrolment import BadSiteError, Enrolled, Reason, Refused, hash_of, mint, redeem
from landreeve_hub.store.database import Store
from landreeve_hub.store.tables import devices, enrolment_tokens
from sqlalchemy import Row, select, update

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(hours=24)


class Office:
    """A hub's enrolment desk."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "hub.db")
        self.authority = Authority(folder)
        self.authority.init(NOW)

    async def mint(
        self, site: str = "ewr", ttl: timedelta = DAY, labels: dict[str, str] | None = None
    ) -> EnrolmentToken:
        fingerprint = self.authority.ca_fingerprint
        text = await mint(self.store, site, labels or {}, ttl, NOW, url="https://hub:8443", ca_fingerprint=fingerprint)
        return parse_token(text)

    async def redeem(self, secret: str, csr: str, now: datetime = NOW) -> Enrolled | Refused:
        return await redeem(self.store, self.authority, secret, csr, now, fleet="demo")

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


def reason(answer: Enrolled | Refused) -> Reason:
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


async def test_two_tokens_for_one_site_enrol_one_box(office: Office) -> None:
    first, second = await office.mint(), await office.mint()
    assert isinstance(await office.redeem(first.secret, request()), Enrolled)
    assert reason(await office.redeem(second.secret, request())) is Reason.SITE_TAKEN
    with pytest.raises(BadSiteError, match="has a device already"):
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
