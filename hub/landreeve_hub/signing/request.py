"""What is to be signed, as one small file that explains itself; it can be signed where there is no hub.

A request carries whole new metadata beside what is in force, so that whoever signs sees the difference computed
on their own machine and need not believe the hub's words.
"""

from typing import Any, Literal

import msgspec
from securesystemslib.exceptions import FormatError, UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from landreeve_hub.signing.errors import BadRequestError, RefusedRequestError
from landreeve_hub.signing.keyfolder import NAME_FIELD, check_keyid

MAX_BYTES = 4_000_000
HOW = (
    "Look at it and sign it where the key is: landreeve-hub keys sign THIS-FILE --key KEY-FILE. "
    "Then bring this file back: landreeve-hub keys import THIS-FILE."
)


class Need(msgspec.Struct, frozen=True):
    """``threshold`` of these keys (name by key id) must sign. Said for people: the hub counts by its own metadata."""

    threshold: int
    keys: dict[str, str]


class Item(msgspec.Struct, frozen=True):
    """One piece of new metadata with the signatures it has so far, and what is in force (empty: nothing yet)."""

    repository: str
    role: str
    needs: tuple[Need, ...]
    base: str
    metadata: str


class SigningRequest(msgspec.Struct, frozen=True):
    """``id`` names the change at the hub that made it; ``what`` repeats `summary` for whoever opens the file."""

    id: str
    made: str
    made_by: str
    items: tuple[Item, ...]
    kind: Literal["landreeve.signing-request.1"] = "landreeve.signing-request.1"
    what: tuple[str, ...] = ()
    how: str = HOW


def encode(request: SigningRequest) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(request), indent=1) + b"\n"


def parse(data: bytes) -> SigningRequest:
    """The request in a file; `BadRequestError` when it is none."""
    if len(data) > MAX_BYTES:
        raise BadRequestError(f"{len(data)} bytes: a signing request has at most {MAX_BYTES}")
    try:
        request = msgspec.json.decode(data, type=SigningRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"this is no signing request of this version ({error}); export it again") from error
    for item in request.items:
        metadata_of(item)
        base_of(item)
    return request


def metadata_of(item: Item) -> Metadata[Any]:
    """The new metadata of an item."""
    return _metadata(item, item.metadata)


def base_of(item: Item) -> Root | Targets | None:
    """What is in force."""
    return _metadata(item, item.base).signed if item.base else None


def sign(request: SigningRequest, signer: CryptoSigner) -> tuple[SigningRequest, tuple[str, ...]]:
    """The request with this key's signature wherever it counts, and where that is. `RefusedRequestError` when it
    counts nowhere."""
    items: list[Item] = []
    signed: list[str] = []
    for item in request.items:
        counts = any(signer.public_key.keyid in need.keys for need in item.needs)
        items.append(_signed(item, signer) if counts else item)
        signed += [f"{item.repository} {item.role}"] if counts else []
    if not signed:
        wanted = sorted({name for item in request.items for need in item.needs for name in need.keys.values()})
        raise RefusedRequestError(
            f"the key {signer.public_key.keyid[:12]} counts for nothing in this request; it wants: {', '.join(wanted)}"
        )
    return msgspec.structs.replace(request, items=tuple(items)), tuple(signed)


def _signed(item: Item, signer: CryptoSigner) -> Item:
    metadata = metadata_of(item)
    metadata.sign(signer, append=True)
    return msgspec.structs.replace(item, metadata=metadata.to_bytes().decode())


def fits(key: Key, metadata: Metadata[Any]) -> bool:
    """Whether the metadata carries a good signature of the key."""
    signature = metadata.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, metadata.signed_bytes)
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True


# --- the difference, in words ---


def summary(request: SigningRequest) -> tuple[str, ...]:
    """What would change, one line for each change, computed from the metadata itself."""
    lines = []
    for item in request.items:
        new, old = metadata_of(item).signed, base_of(item)
        head = f"{item.repository} {item.role} {old.version if old else 0} → {new.version}"
        found = _root_changes(old, new) if isinstance(new, Root) else _list_changes(old, new)
        found.append(f"valid until {new.expires:%Y-%m-%d}")
        lines += [f"{head}: {line}" for line in found]
    return tuple(lines)


def key_name(key: Key) -> str:
    """What people call a key, with the beginning of its id."""
    name = plain_name(key)
    return f"{name} ({key.keyid[:8]})" if name else key.keyid[:8]


def plain_name(key: Key) -> str:
    """What people call a key; empty where it was given no name."""
    return str(key.unrecognized_fields.get(NAME_FIELD) or "")


def _root_changes(old: Any, new: Root) -> list[str]:
    lines = []
    for role, entry in new.roles.items():
        before = old.roles[role] if old else None
        lines += _key_changes(role, entry.keyids, before.keyids if before else [], {**_keys(old), **new.keys})
        if before is None or before.threshold != entry.threshold:
            lines.append(f"{role} needs {entry.threshold} of {len(entry.keyids)} keys")
    return lines


def _list_changes(old: Any, new: Targets) -> list[str]:
    before: dict[str, TargetFile] = old.targets if old else {}
    lines = [f"adds {_target(one)}" for name, one in new.targets.items() if name not in before]
    lines += [f"removes {_target(one)}" for name, one in before.items() if name not in new.targets]
    lines += [f"CHANGES {_target(one)}" for name, one in new.targets.items() if before.get(name, one) != one]
    return lines + _delegation_changes(old.delegations if old else None, new.delegations)


def _delegation_changes(old: Any, new: Any) -> list[str]:
    before, after = (dict(one.roles or {}) if one else {} for one in (old, new))
    keys = {**(old.keys if old else {}), **(new.keys if new else {})}
    lines = [f"removes the role {name}" for name in before if name not in after]
    for name, role in after.items():
        known = before.get(name)
        lines += _key_changes(f"the role {name}", role.keyids, known.keyids if known else [], keys)
        if known is None or (known.threshold, known.paths) != (role.threshold, role.paths):
            paths = ", ".join(role.paths or ())
            lines.append(f"the role {name} lists {paths} with {role.threshold} of {len(role.keyids)} keys")
    return lines


def _key_changes(what: str, after: list[str], before: list[str], keys: dict[str, Key]) -> list[str]:
    added = [f"{what} gains the key {key_name(keys[one])}" for one in after if one not in before]
    return added + [f"{what} loses the key {key_name(keys[one])}" for one in before if one not in after]


def _keys(old: Any) -> dict[str, Key]:
    return dict(old.keys) if old else {}


def _target(target: TargetFile) -> str:
    custom = target.custom or {}
    what = " ".join(str(custom[field]) for field in ("component", "model", "version") if field in custom)
    digest = target.hashes.get("sha256", "")
    return f"{what or target.path} ({digest[:12]}, manifest of {target.length} bytes)"


def _metadata(item: Item, text: str) -> Metadata[Any]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
    except RepositoryError as error:
        raise BadRequestError(f"{item.repository} {item.role}: this is no metadata ({error})") from error
    wanted = Root if item.role == "root" else Targets
    if not isinstance(metadata.signed, wanted):
        raise BadRequestError(f"{item.repository} {item.role}: this is {metadata.signed.type} metadata")
    try:
        for key in _keys_in(metadata.signed).values():
            check_keyid(key)
    except (ValueError, FormatError) as error:
        raise BadRequestError(f"{item.repository} {item.role}: {error}") from error
    return metadata


def _keys_in(signed: Root | Targets) -> dict[str, Key]:
    if isinstance(signed, Root):
        return signed.keys
    return signed.delegations.keys if signed.delegations else {}
