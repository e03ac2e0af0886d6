"""People who approve releases with a key of their own, and the roles that need so many of them.

A person makes the key where it will stay and brings its public half with a proof that they hold it; an admin admits
it; from then on it may be named in a role (``metadata/targets`` delegates names of models to it).
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from landreeve.blobs.durable import write_durably
from landreeve.wire.ids import check_id
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key, Signature

from landreeve_hub.signing.edits import SetRole
from landreeve_hub.signing.errors import BadRequestError, RefusedRequestError, SigningError
from landreeve_hub.signing.keyfolder import key_document, read_key

RESERVED = ("root", "targets", "snapshot", "timestamp", "director")


class Approver(msgspec.Struct, frozen=True):
    """Whose key it is and how it came to be known. Only an *admitted* one may be named in a role. ``judged_by`` of one
    that is *brought* is who dismissed it before."""

    person: str
    key: dict[str, Any]
    brought: str
    state: Literal["brought", "admitted", "dismissed"] = "brought"
    judged_by: str = ""

    @property
    def keyid(self) -> str:
        """The key's id."""
        return str(self.key["keyid"])


class PublicHalf(msgspec.Struct, frozen=True):
    """What a person brings: the public key, their name, and both signed by the key."""

    person: str
    key: dict[str, Any]
    proof: str
    kind: Literal["landreeve.public-key.1"] = "landreeve.public-key.1"


def public_half(signer: CryptoSigner, person: str) -> PublicHalf:
    """The public half of a key with the proof that its holder made this."""
    document = key_document(signer.public_key, check_id(person))
    return PublicHalf(person, document, signer.sign(_statement(person, document)).signature)


def parse_half(data: bytes) -> tuple[PublicHalf, Key]:
    """The public half in a file, its proof checked; `BadRequestError` says what is wrong."""
    try:
        half = msgspec.json.decode(data, type=PublicHalf)
        key = read_key(half.key)
        key.verify_signature(Signature(key.keyid, half.proof), _statement(half.person, half.key))
    except (msgspec.DecodeError, ValueError) as error:
        raise BadRequestError(f"this is no public key made by `landreeve-hub keys make` ({error})") from error
    except (UnverifiedSignatureError, VerificationError) as error:
        raise BadRequestError("the proof does not fit: this file was not made by who holds the key") from error
    return half, key


class Approvers:
    """``metadata/approvers.json``. Not thread-safe: its owner keeps the order."""

    def __init__(self, state: Path) -> None:
        self._path = state / "metadata" / "approvers.json"

    def listed(self) -> tuple[Approver, ...]:
        """Everyone, as they came."""
        if not self._path.exists():
            return ()
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Approver, ...])
        except msgspec.DecodeError as error:
            raise SigningError(f"{self._path}: cannot be read ({error}); restore it from a backup") from error

    def bring(self, data: bytes, now: datetime) -> Approver:
        """Keep a public half that was brought. The same again changes nothing, but one that was dismissed waits to be
        admitted anew."""
        half, key = parse_half(data)
        known = {one.keyid: one for one in self.listed()}
        if key.keyid in known:
            one = known[key.keyid]
            return one if one.state != "dismissed" else self._keep(msgspec.structs.replace(one, state="brought"))
        return self._keep(Approver(half.person, half.key, now.isoformat(timespec="seconds")))

    def admit(self, keyid: str, by: str) -> Approver:
        """The key may approve from now on, once a role names it."""
        return self._keep(msgspec.structs.replace(self.find(keyid), state="admitted", judged_by=by))

    def dismiss(self, keyid: str, by: str) -> Approver:
        """The key is not wanted any more; roles that name it are changed beside (`without`)."""
        return self._keep(msgspec.structs.replace(self.find(keyid), state="dismissed", judged_by=by))

    def find(self, keyid: str) -> Approver:
        """The approver of a key id, of the beginning of one (8 or more), or of a name."""
        found = [
            one for one in self.listed() if one.person == keyid or (len(keyid) >= 8 and one.keyid.startswith(keyid))
        ]
        if len(found) != 1:
            raise RefusedRequestError(
                f"{keyid}: {len(found) or 'no'} approver keys are known by that; see keys approvers"
            )
        return found[0]

    def role(self, name: str, paths: tuple[str, ...], threshold: int, people: tuple[str, ...]) -> SetRole:
        """The edit that makes a role of these people, or of every admitted one."""
        if check_id(name) in RESERVED:
            raise SigningError(f"{name!r} is a name of TUF's own roles: choose another, such as 'releases'")
        chosen = [self.find(one) for one in people] or [one for one in self.listed() if one.state == "admitted"]
        for one in chosen:
            if one.state != "admitted":
                raise RefusedRequestError(f"the key of {one.person} is {one.state}: admit it first (keys admit)")
        persons = {one.person for one in chosen}
        if not 1 <= threshold <= len(persons):
            raise RefusedRequestError(
                f"{threshold} signatures of different people are wanted, {len(persons)} have an admitted key"
            )
        if len(persons) != len(chosen):
            raise RefusedRequestError(
                "a person may bring one key into a role: name keys by the beginnings of their ids"
            )
        for path in paths:
            if not path or path.startswith("/") or path.count("/") != 2:
                raise SigningError(f"{path!r}: write paths as models/MODEL/* with * in any part, as models/flight-*/*")
        return SetRole(name, paths, threshold, tuple(one.key for one in chosen))

    def _keep(self, approver: Approver) -> Approver:
        listed = self.listed()
        known = any(one.keyid == approver.keyid for one in listed)
        kept = [approver if one.keyid == approver.keyid else one for one in listed] + ([] if known else [approver])
        write_durably(self._path, msgspec.json.encode(kept), 0o600)
        return approver


def _statement(person: str, document: dict[str, Any]) -> bytes:
    said = {"kind": "landreeve.public-key.1", "person": person, "key": json.loads(json.dumps(document["key"]))}
    return str(encode_canonical(said)).encode()
