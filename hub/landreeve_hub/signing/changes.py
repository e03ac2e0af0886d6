"""Changes of what is signed, from wanted to in force: composed here, signed by whichever keys are needed wherever
they are, and put into force when the thresholds are met.

Keys on this machine sign at once, so a fleet run by one person notices nothing. What needs keys that are kept
elsewhere stays open: it is exported as a request, signed where the keys are, and imported.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from landreeve.blobs.durable import write_durably
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root, Targets

from landreeve_hub.signing import edits as editing
from landreeve_hub.signing import request as requests
from landreeve_hub.signing.chain import SIGNATURES_BYTES, TARGETS_LIFETIME, check_size
from landreeve_hub.signing.edits import Edit, Renew
from landreeve_hub.signing.errors import KeyMissingError, RefusedRequestError, SigningError
from landreeve_hub.signing.keyfolder import ALL_KEYS, TARGETS_KEY, KeyFolder, key_document, named, read_key
from landreeve_hub.signing.lists import TOP, Lists
from landreeve_hub.signing.request import Item, Need, SigningRequest
from landreeve_hub.signing.roots import REPOSITORIES, TARGETS, newest_root, newest_root_text, next_root, write_root

_KEPT = 200
ROOTS = "root"


class _Open(msgspec.Struct, frozen=True):
    """A change under way. ``keys`` are the new ones by name; ``signed`` says that a signature came from elsewhere, so
    what is signed may not change any more; ``complete`` that it is being put into force."""

    subject: str
    request: SigningRequest
    keys: dict[str, dict[str, Any]] = {}
    signed: bool = False
    complete: bool = False


class _Book(msgspec.Struct, frozen=True):
    edits: tuple[Edit, ...] = ()
    open: tuple[_Open, ...] = ()
    done: dict[str, str] = {}
    count: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a change is: signatures had and needed by the role that lacks most, and whose are still welcome."""

    id: str
    subject: str
    what: tuple[str, ...]
    have: int = 0
    need: int = 0
    missing: tuple[str, ...] = ()
    in_force: bool = False

    @property
    def sentence(self) -> str:
        """The standing for people."""
        if self.in_force:
            return "in force"
        return f"awaiting signatures: {self.have} of {self.need} (missing: {', '.join(self.missing)})"


class ChangeBook:
    """``metadata/changes.json``. Not thread-safe: its owner keeps the order."""

    def __init__(self, state: Path, lists: Lists) -> None:
        self._state = state
        self._path = state / "metadata" / "changes.json"
        self._lists = lists
        self._keys = KeyFolder(state)

    # --- wanting ---

    def want(self, edit: Edit, now: datetime, by: str) -> Standing:
        """Have a list changed: at once when the keys are here, else as an open change. `SigningError`, and nothing is
        kept of it, when the list would become larger than devices take."""
        book = self._read()
        others = tuple(one for one in book.edits if editing.subject(one) != editing.subject(edit))
        if not isinstance(edit, Renew):  # which makes nothing larger
            wanted = tuple(one for one in (*others, edit) if one.role == edit.role)
            check_size(edit.role, len(self._proposed(edit.role, wanted, now).encode()) + SIGNATURES_BYTES)
        self._write(msgspec.structs.replace(book, edits=(*others, edit)))
        self.settle(now, by)
        return self.standing_of(edit)

    def rotate(self, name: str, new: Key | None, now: datetime, by: str) -> Standing:
        """Replace a key in both roots by a new one: ``new`` is the public half of one made elsewhere; without it the
        new key is made here. Devices follow by themselves, each new root being signed by the old threshold and by its
        own."""
        if name not in ALL_KEYS:
            raise SigningError(f"{name!r}: there is no such key; there are {', '.join(ALL_KEYS)}")
        self._finish(now)
        old = self._keys.public(name)
        if old is None:
            raise KeyMissingError(
                f"the public half of the {name} key is not known here: put its key at {self._state / 'keys'} once"
            )
        if new is None and not self._keys.has(name):
            raise KeyMissingError(
                f"the {name} key is kept elsewhere: make the new one there (landreeve-hub keys make FILE) and give its "
                "public half (--new-key FILE.pub.json)"
            )
        if new is not None and (holder := self._holder_of(new)):
            raise RefusedRequestError(f"this is the {holder} key already: make one that is used for nothing else")
        key = named(new or self._keys.make_next(name).public_key, name)
        request = self._compose_roots((old, key), now, by, relist=name == TARGETS_KEY)
        return self._open_roots(request, {name: key_document(key, name)}, now)

    def renew_roots(self, now: datetime, by: str) -> Standing:
        """Sign both roots again with the same keys, for a later expiry."""
        self._finish(now)
        return self._open_roots(self._compose_roots(None, now, by), {}, now)

    def drop(self, id: str) -> None:  # noqa: A002  as everywhere on the wire
        """Call an open change off, with the edits it stands for."""
        book, found = self._read(), self._find(id)
        if found.complete:
            raise RefusedRequestError(f"change {id} is signed and half in force already: it can only be ended")
        left = tuple(one for one in book.edits if one.role != found.subject)
        self._write(msgspec.structs.replace(book, edits=left, open=_without(book.open, id)))
        for name in found.keys:
            self._keys.forget_next(name)

    # --- asking ---

    def standings(self) -> tuple[Standing, ...]:
        """Every open change."""
        return tuple(self._standing(one) for one in self._read().open)

    def export(self, id: str) -> SigningRequest:  # noqa: A002
        """The request of an open change, with the signatures it has."""
        request = self._with_needs(self._find(id).request)
        return msgspec.structs.replace(request, what=requests.summary(request))

    def standing_of(self, edit: Edit) -> Standing:
        """How far the change is that an edit belongs to."""
        if editing.is_done(edit, self._listed(edit.role)):
            return Standing("", edit.role, (), in_force=True)
        return next(self._standing(one) for one in self._read().open if one.subject in {edit.role, ROOTS})

    def wants(self, role: str) -> tuple[Edit, ...]:
        """Edits of a role that are not in force."""
        return tuple(one for one in self._read().edits if one.role == role)

    # --- signing ---

    def take(self, request: SigningRequest, now: datetime) -> Standing:
        """Signatures that were made elsewhere. `RefusedRequestError` says why a request is of no use."""
        book = self._read()
        if when := book.done.get(request.id):
            raise RefusedRequestError(f"change {request.id} is in force since {when}: nothing is left to sign")
        found = self._relisted(self._find(request.id), now)
        self._refuse_overtaken(found.request)
        merged = self._merge(found.request, request)
        self._keep(msgspec.structs.replace(found, request=merged, signed=True))
        standing = self._advance(request.id, now)
        self.settle(now, found.request.made_by)
        return standing

    def settle(self, now: datetime, by: str) -> None:
        """Compose what is wanted, sign what keys here can sign, and put into force what is complete."""
        self._finish(now)
        for role in dict.fromkeys(edit.role for edit in self._read().edits):
            self._settle(role, now, by)
        for one in self._read().open:
            self._advance(one.request.id, now)

    def recover(self, now: datetime) -> None:
        """After a start: end what a crash cut short."""
        self._finish(now)
        for name in ALL_KEYS:
            if self._keys.has(name) and self._keys.public(name) is not None:
                self._remember(name)
            self._clear_waiting(name)
            if self._keys.waiting(name) is not None and not self._is_spoken_of(name):
                self.rotate(name, None, now, "hub")
        if self._lists.exist:
            self.settle(now, "hub")

    def _finish(self, now: datetime) -> None:
        """Put into force what was cut short in the middle of it: nothing else may be begun before."""
        for one in self._read().open:
            if one.complete:
                self._put_in_force(one, now)

    def _clear_waiting(self, name: str) -> None:
        """A replacement goes that another change of the roots came after, and into place when the roots name it."""
        waiting = self._keys.waiting(name)
        if waiting is None or self._is_spoken_of(name):
            return
        if any(waiting.keyid in newest_root(self._state, repository).keys for repository in REPOSITORIES):
            self._keys.replace(name, named(waiting, name))
        elif any(one.subject == ROOTS for one in self._read().open):
            self._keys.forget_next(name)

    def _is_spoken_of(self, name: str) -> bool:
        """Whether an open change wants the key that waits to replace the named one."""
        waiting = self._keys.waiting(name)
        told = [one.keys[name]["keyid"] for one in self._read().open if name in one.keys]
        return waiting is not None and waiting.keyid in told

    def _holder_of(self, key: Key) -> str:
        """The name under which a key is in use already; empty when it is not."""
        known = {public.keyid: name for name in ALL_KEYS if (public := self._keys.public(name)) is not None}
        return known.get(key.keyid, "")

    def _remember(self, name: str) -> None:
        public = self._keys.public(name)
        if public is not None and not (self._state / "keys" / f"{name}.pub.json").exists():
            self._keys.remember(name, public)

    # --- composing ---

    def _settle(self, role: str, now: datetime, by: str) -> None:
        book = self._read()
        listed = self._listed(role)
        wanted = tuple(one for one in book.edits if one.role == role and not editing.is_done(one, listed))
        others = tuple(one for one in book.edits if one.role != role)
        known = next((one for one in book.open if one.subject == role), None)
        if known is not None and not (wanted and self._still_holds(known, wanted)):
            book = msgspec.structs.replace(book, open=_without(book.open, known.request.id))
            known = None
        book = msgspec.structs.replace(book, edits=others + wanted)
        if known is None and wanted:
            book = _numbered(book)
            item = Item(TARGETS, role, (), self._text(role), self._proposed(role, wanted, now))
            request = self._request((item,), now, by, str(book.count))
            book = msgspec.structs.replace(book, open=(*book.open, _Open(role, request)))
        self._write(book)

    def _proposed(self, role: str, wanted: tuple[Edit, ...], now: datetime) -> str:
        """The next list of a role, with what is wanted."""
        listed = self._listed(role)
        for edit in wanted:
            editing.apply(edit, listed)
        listed.version, listed.expires = listed.version + 1, now + TARGETS_LIFETIME
        return Metadata(listed).to_bytes().decode()

    def _compose_roots(
        self, keys: tuple[Key, Key] | None, now: datetime, by: str, *, relist: bool = False
    ) -> SigningRequest:
        """Both roots with one key replaced; ``relist`` adds the approvers' list, which another key signs now."""
        items = []
        for repository in REPOSITORIES:
            root = next_root(newest_root(self._state, repository), keys, now)
            base = newest_root_text(self._state, repository)
            items.append(Item(repository, ROOTS, (), base, Metadata(root).to_bytes().decode()))
        if relist and self._lists.exist:
            items.append(self._same_list(now))
        book = _numbered(self._read())
        self._write(book)
        return self._request(tuple(items), now, by, str(book.count))

    def _request(self, items: tuple[Item, ...], now: datetime, by: str, number: str) -> SigningRequest:
        return self._with_needs(SigningRequest(f"change-{number}", now.isoformat(timespec="seconds"), by, items))

    def _with_needs(self, request: SigningRequest) -> SigningRequest:
        """The request with whose signatures it needs now: who is in a role may have changed since it was made."""
        needing = tuple(msgspec.structs.replace(item, needs=self._needs(request, item)) for item in request.items)
        return msgspec.structs.replace(request, items=needing)

    def _same_list(self, now: datetime) -> Item:
        """The approvers' list in force, to be signed by another key."""
        return Item(TARGETS, TOP, (), self._text(TOP), self._proposed(TOP, (), now))

    def _relisted(self, one: _Open, now: datetime) -> _Open:
        """The change with the approvers' list that is in force now: while a new targets key waits for the roots'
        signatures, releases go on being approved under the old one."""
        item = _of(one.request, TARGETS, TOP)
        if one.subject != ROOTS or one.complete or item is None or item.base == self._text(TOP):
            return one
        items = tuple(self._same_list(now) if other is item else other for other in one.request.items)
        return msgspec.structs.replace(one, request=msgspec.structs.replace(one.request, items=items))

    def _open_roots(self, request: SigningRequest, keys: dict[str, dict[str, Any]], now: datetime) -> Standing:
        """Only one change of the roots is open at a time: the last one asked for."""
        book = self._read()
        former = tuple(one for one in book.open if one.subject == ROOTS)
        kept = tuple(one for one in book.open if one.subject != ROOTS)
        self._write(msgspec.structs.replace(book, open=(*kept, _Open(ROOTS, request, keys))))
        for name in {name for one in former for name in one.keys}:
            self._clear_waiting(name)
        standing = self._advance(request.id, now)
        if self._lists.exist:
            self.settle(now, request.made_by)
        return standing

    # --- counting ---

    def _delegators(self, request: SigningRequest, item: Item) -> Iterator[Root | Targets]:
        """Whose keys and threshold an item must satisfy."""
        if item.role == ROOTS:
            base = requests.base_of(item)
            if isinstance(base, Root):
                yield base
            yield requests.metadata_of(item).signed
        elif item.role == TOP:
            new = _of(request, TARGETS, ROOTS)
            yield requests.metadata_of(new).signed if new else newest_root(self._state, TARGETS)
        else:
            new = _of(request, TARGETS, TOP)
            yield requests.metadata_of(new).signed if new else self._lists.top()

    def _needs(self, request: SigningRequest, item: Item) -> tuple[Need, ...]:
        needs = []
        for delegator in self._delegators(request, item):
            role = delegator.get_delegated_role(item.role)
            keys = {keyid: requests.key_name(delegator.get_key(keyid)) for keyid in role.keyids}
            needs.append(Need(role.threshold, keys))
        return tuple(need for at, need in enumerate(needs) if need not in needs[:at])

    def _counts(self, request: SigningRequest) -> Iterator[tuple[int, int, dict[str, Key]]]:
        """For each threshold: signatures had, needed, and the keys that have not signed."""
        for item in request.items:
            metadata = requests.metadata_of(item)
            for delegator in self._delegators(request, item):
                result = delegator.get_verification_result(item.role, metadata.signed_bytes, metadata.signatures)
                yield len(result.signed), result.threshold, result.unsigned

    def _standing(self, one: _Open) -> Standing:
        counts = list(self._counts(one.request))
        have, need, _ = max(counts, key=lambda count: count[1] - count[0])
        missing = {requests.key_name(key) for had, wanted, keys in counts if had < wanted for key in keys.values()}
        what = requests.summary(one.request)
        return Standing(one.request.id, one.subject, what, min(have, need), need, tuple(sorted(missing)))

    def _still_holds(self, one: _Open, wanted: tuple[Edit, ...]) -> bool:
        """Whether an open change of a list stays as it is: what people have begun to sign is finished first, and
        further edits wait for their turn."""
        try:
            self._refuse_overtaken(one.request)
        except RefusedRequestError:
            return False
        proposed = requests.metadata_of(one.request.items[0]).signed
        return one.signed or all(editing.is_done(edit, proposed) for edit in wanted)

    def _refuse_overtaken(self, request: SigningRequest) -> None:
        for item in request.items:
            roots = item.role == ROOTS
            newest = newest_root_text(self._state, item.repository) if roots else self._text(item.role)
            if item.base != newest:
                base, found = requests.base_of(item), Metadata.from_bytes(newest.encode()).signed.version
                raise RefusedRequestError(
                    f"change {request.id} was made when {item.repository} {item.role} had version "
                    f"{base.version if base else 0}; version {found} is in force now: export the change anew"
                )

    # --- moving on ---

    def _merge(self, own: SigningRequest, given: SigningRequest) -> SigningRequest:
        """Our request with the signatures of the given one that count and fit."""
        if [(i.repository, i.role) for i in own.items] != [(i.repository, i.role) for i in given.items]:
            raise RefusedRequestError(f"change {own.id} has other parts than this file: export it anew")
        gained, items = 0, []
        for mine, theirs in zip(own.items, given.items, strict=True):
            metadata, signed = requests.metadata_of(mine), requests.metadata_of(theirs)
            if metadata.signed_bytes != signed.signed_bytes:
                if mine.role == TOP and len(own.items) > 1:  # the list went on meanwhile (`_relisted`): the roots count
                    items.append(mine)
                    continue
                raise RefusedRequestError(
                    f"{mine.repository} {mine.role} in this file is not what change {own.id} wants to have signed: it "
                    "was changed on its way, or the change was made anew since; export it again"
                )
            keys = self._counting_keys(own, mine)
            for keyid, signature in signed.signatures.items():
                if metadata.signatures.get(keyid) == signature:
                    continue  # came before, from someone who may have left the role since
                if keyid not in keys:
                    raise RefusedRequestError(
                        f"the key {keyid[:12]} does not count for {mine.repository} {mine.role}; these do: "
                        f"{', '.join(sorted(map(requests.key_name, keys.values())))}"
                    )
                if not requests.fits(keys[keyid], signed):
                    raise RefusedRequestError(
                        f"the signature of {requests.key_name(keys[keyid])} does not fit what was signed"
                    )
                gained += keyid not in metadata.signatures
                metadata.signatures[keyid] = signature
            items.append(msgspec.structs.replace(mine, metadata=metadata.to_bytes().decode()))
        if not gained:
            raise RefusedRequestError(f"this file brings no signature that change {own.id} does not have already")
        return msgspec.structs.replace(own, items=tuple(items))

    def _counting_keys(self, request: SigningRequest, item: Item) -> dict[str, Key]:
        return {
            keyid: delegator.get_key(keyid)
            for delegator in self._delegators(request, item)
            for keyid in delegator.get_delegated_role(item.role).keyids
        }

    def _advance(self, id: str, now: datetime) -> Standing:  # noqa: A002
        """Sign with the keys of this machine; put into force when that is enough."""
        found = self._relisted(self._find(id), now)
        found = msgspec.structs.replace(found, request=self._with_needs(found.request))
        request = found.request
        for signer in self._signers(found):
            try:
                request = requests.sign(request, signer)[0]
            except RefusedRequestError:
                continue  # it counts for other roles
        found = msgspec.structs.replace(found, request=request)
        standing = self._standing(found)
        if standing.have < standing.need:
            self._keep(found)
            return standing
        if len(request.items) > 1:  # one list comes into force by one rename; roots and keys need to be resumed
            self._keep(msgspec.structs.replace(found, complete=True))
        self._put_in_force(found, now)
        return dataclasses.replace(standing, in_force=True)

    def _signers(self, one: _Open) -> Iterator[CryptoSigner]:
        """The keys of this machine that count for a change. Where the public half already says that a key does not,
        the private one is left alone."""
        counting = {keyid for item in one.request.items for need in item.needs for keyid in need.keys}
        for name in ALL_KEYS:
            public = self._keys.public(name)
            here = self._try(name) if public is not None and public.keyid in counting else None
            waiting = self._keys.next(name) if name in one.keys else None
            yield from (signer for signer in (here, waiting) if signer is not None)

    def _try(self, name: str) -> CryptoSigner | None:
        """The key when it is here; locked without its passphrase, it counts as kept elsewhere."""
        try:
            return self._keys.load(name) if self._keys.has(name) else None
        except KeyMissingError:
            return None

    def _put_in_force(self, one: _Open, now: datetime) -> None:
        """May be repeated after a crash."""
        for item in one.request.items:
            if item.role == ROOTS:
                write_root(self._state, item.repository, item.metadata)
        for name, document in one.keys.items():
            self._keys.replace(name, read_key(document))
        lists = {item.role: item.metadata for item in one.request.items if item.role != ROOTS}
        if lists or self._lists.exist:
            self._lists.put(lists, now)
        book = self._read()
        done = dict(list({**book.done, one.request.id: now.isoformat(timespec="seconds")}.items())[-_KEPT:])
        edits = tuple(edit for edit in book.edits if not editing.is_done(edit, self._listed(edit.role)))
        self._write(_Book(edits, _without(book.open, one.request.id), done, book.count))

    def _listed(self, role: str) -> Targets:
        if text := self._text(role):
            return Metadata[Targets].from_bytes(text.encode()).signed
        empty = Targets()
        empty.version = 0  # so that its first version is 1
        return empty

    def _text(self, role: str) -> str:
        return self._lists.text(role) if self._lists.exist else ""

    def _find(self, id: str) -> _Open:  # noqa: A002
        for one in self._read().open:
            if one.request.id == id:
                return one
        raise RefusedRequestError(f"{id}: there is no such open change; it was called off, or made anew since")

    def _keep(self, one: _Open) -> None:
        book = self._read()
        opened = tuple(one if other.request.id == one.request.id else other for other in book.open)
        self._write(msgspec.structs.replace(book, open=opened))

    def _read(self) -> _Book:
        if not self._path.exists():
            return _Book()
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Book)
        except msgspec.DecodeError as error:
            raise SigningError(
                f"{self._path}: cannot be read ({error}); move it away, open changes are lost"
            ) from error

    def _write(self, book: _Book) -> None:
        write_durably(self._path, msgspec.json.encode(book), 0o600)


def _without(opened: tuple[_Open, ...], id: str) -> tuple[_Open, ...]:  # noqa: A002
    return tuple(one for one in opened if one.request.id != id)


def _numbered(book: _Book) -> _Book:
    return msgspec.structs.replace(book, count=book.count + 1)


def _of(request: SigningRequest, repository: str, role: str) -> Item | None:
    return next((item for item in request.items if (item.repository, item.role) == (repository, role)), None)
