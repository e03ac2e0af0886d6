"""Rehearses what an operator must one day do in earnest: replacing keys, and losing them.

Nothing real changes. That devices still follow is tried with the real metadata; the rest on a copy in a temporary
folder, with the real keys where enough of them are here, else with stand-ins for all of them.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from landreeve.trust.anchor import install
from landreeve.trust.document import document_text
from landreeve.trust.verdict import Rejected
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.messages import Desired, SignedDesired
from securesystemslib.signer import CryptoSigner

from landreeve_hub.signing import keys, request
from landreeve_hub.signing.copies import place
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.signing.keyfolder import DIRECTOR_KEY, ROOT_KEYS, ROOT_THRESHOLD, TARGETS_KEY, KeyFolder, make_key
from landreeve_hub.signing.roots import REPOSITORIES, root_text, root_versions
from landreeve_hub.signing.targets import TargetsRepository

_DEVICE = "drill"
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing rehearsed: whether it went as it must, what was seen, and what to do in earnest."""

    step: str
    ok: bool
    seen: str
    to_do: str


def drill(state: Path, now: datetime) -> list[Step]:
    """Every step. `SigningError` when not even the present metadata can be read."""
    steps = [follow(state, now)]
    with place(state) as folder:
        copy, whose = _replica(state, folder / "hub", now)
        rehearsal = _Rehearsal(copy, folder, now)
        steps += [
            rehearsal.root_replaced(),
            rehearsal.online_key_stolen(),
            rehearsal.approvers_key_lost(),
            rehearsal.one_root_key_lost(),
            rehearsal.two_root_keys_lost(),
        ]
    return [steps[0], *(_tried(step, whose) for step in steps[1:])]


def _tried(step: Step, whose: str) -> Step:
    """The step with whose keys it was tried with."""
    return Step(step.step, step.ok, f"{step.seen} ({whose})", step.to_do)


def _replica(state: Path, copy: Path, now: datetime) -> tuple[Path, str]:
    found = KeyFolder(state)
    enough = sum(map(found.has, ROOT_KEYS)) >= len(ROOT_KEYS) and found.has(TARGETS_KEY)
    if enough:
        for folder in ("keys", "metadata"):
            shutil.copytree(state / folder, copy / folder)
        (copy / "metadata" / "changes.json").unlink(missing_ok=True)
        return copy, "tried with a copy of the real keys"
    keys.init(copy, now)
    return copy, "tried with stand-ins, since keys are kept elsewhere"


def _devices(state: Path, folder: Path, now: datetime) -> dict[int, Path]:
    """A device's trust folder for each root version: as if it had joined then and slept since."""
    versions = {repository: root_versions(state, repository) for repository in REPOSITORIES}
    made = {}
    for version in range(1, max(map(max, versions.values())) + 1):
        roots = {name: root_text(state, name, min(version, max(known))) for name, known in versions.items()}
        install(folder / str(version), roots, min(now, _EPOCH))
        made[version] = folder / str(version)
    return made


def _order(state: Path, generation: int, now: datetime) -> SignedDesired:
    """A document that orders nothing, for a device that is not there."""
    desired = Desired(device=_DEVICE, generation=generation, issued=now.isoformat(), models=())
    director = Director(state).sign(_DEVICE, desired, {}, now)
    return SignedDesired(
        generation=generation,
        document=document_text(desired),
        director=director,
        targets=TargetsRepository(state).metadata({}),
    )


def _sees(trust: Path, signed: SignedDesired, now: datetime) -> str:
    """Why a device refuses the document; empty when it believes it."""
    verdict = DesiredVerifier(trust, _DEVICE, _EPOCH).verify(signed, now)
    return verdict.sentence if isinstance(verdict, Rejected) else ""


def follow(state: Path, now: datetime) -> Step:
    """The first step alone: whether a box of every root version there was believes what is in force."""
    with place(state) as folder:
        return _follow(state, _devices(state, folder / "devices", now), now)


def _follow(state: Path, devices: dict[int, Path], now: datetime) -> Step:
    refused = {version: why for version, trust in devices.items() if (why := _sees(trust, _order(state, 1, now), now))}
    first = next(iter(refused.items()), None)
    return Step(
        "every box that ever joined follows to the roots in force",
        not refused,
        f"a box of root {first[0]} would refuse: {first[1]}" if first else f"boxes of root 1 to {max(devices)} follow",
        "restore metadata/ from a backup; do not sign anything before that" if refused else "nothing",
    )


class _Rehearsal:
    """The steps on the copy, one after another; its devices follow from step to step."""

    def __init__(self, copy: Path, place: Path, now: datetime) -> None:
        self._state = copy
        self._place = place
        self._now = now
        self._keys = KeyFolder(copy)
        self._devices = _devices(copy, place / "rehearsal", now)
        self._generation = 0

    def root_replaced(self) -> Step:
        """A root key is replaced while all are there."""
        standing = keys.rotate(self._state, ROOT_KEYS[0], self._now)
        step = self._step("replacing a root key", f"landreeve-hub keys rotate {ROOT_KEYS[0]}")
        return step if standing.in_force else Step(step.step, False, standing.sentence, step.to_do)

    def online_key_stolen(self) -> Step:
        """The director's key is in other hands: it must be worth nothing once it is replaced."""
        stolen = self._keys.load(DIRECTOR_KEY)
        keys.rotate(self._state, DIRECTOR_KEY, self._now)
        step = self._step("the online key was stolen", f"landreeve-hub keys rotate {DIRECTOR_KEY}, at once")
        forged = self._forged(stolen)
        if step.ok and any(not _sees(trust, forged, self._now) for trust in self._devices.values()):
            return Step(step.step, False, "a box still believed the stolen key", "report this: it must not happen")
        return Step(step.step, step.ok, f"{step.seen}; the stolen key is refused", step.to_do)

    def approvers_key_lost(self) -> Step:
        """The approvers' key is gone; its successor is made elsewhere and signs by file."""
        self._lose(TARGETS_KEY)
        successor = make_key(self._place / "elsewhere.pem")
        repository = TargetsRepository(self._state)
        opened = repository.changes.rotate(TARGETS_KEY, successor.public_key, self._now, "drill")
        if not opened.in_force:
            signed, _ = request.sign(repository.changes.export(opened.id), successor)
            repository.changes.take(signed, self._now)
        return self._step(
            "the approvers' key was lost",
            "landreeve-hub keys make FILE where the new key will stay; keys rotate targets --new-key FILE.pub.json; "
            "keys export, sign, import",
        )

    def one_root_key_lost(self) -> Step:
        """Two root keys are left, which is enough to replace the third."""
        self._lose(ROOT_KEYS[2])
        keys.rotate(self._state, ROOT_KEYS[1], self._now)
        lost = make_key(self._place / "third.pem")
        TargetsRepository(self._state).changes.rotate(ROOT_KEYS[2], lost.public_key, self._now, "drill")
        return self._step(
            "one root key was lost",
            f"bring the other {ROOT_THRESHOLD} together (or sign by file) and replace it: keys rotate {ROOT_KEYS[2]} "
            "--new-key FILE.pub.json",
        )

    def two_root_keys_lost(self) -> Step:
        """One root key is left: nothing can be changed, and nothing must be."""
        self._lose(ROOT_KEYS[0])
        before = [root_versions(self._state, repository) for repository in REPOSITORIES]
        standing = keys.rotate(self._state, DIRECTOR_KEY, self._now)
        TargetsRepository(self._state).changes.drop(standing.id)
        held = not standing.in_force and before == [root_versions(self._state, name) for name in REPOSITORIES]
        step = self._step(
            "two root keys were lost",
            "who may sign can never be changed again: set up new keys (a new state folder) and let every box join it "
            "before the roots expire; until then everything else goes on",
        )
        return Step(step.step, step.ok and held, f"one key alone changes nothing ({standing.sentence})", step.to_do)

    def _step(self, name: str, to_do: str) -> Step:
        self._generation += 1
        signed = _order(self._state, self._generation, self._now)
        refused = [why for trust in self._devices.values() if (why := _sees(trust, signed, self._now))]
        newest = max(root_versions(self._state, REPOSITORIES[0]))
        return Step(name, not refused, refused[0] if refused else f"boxes follow to root {newest}", to_do)

    def _forged(self, stolen: CryptoSigner) -> SignedDesired:
        """What a thief would send: the next document under the old key, without the roots that replaced it."""
        thief = self._place / "thief"
        shutil.copytree(self._state, thief)
        folder = KeyFolder(thief)
        folder.replace(DIRECTOR_KEY, stolen.public_key)
        (thief / "keys" / f"{DIRECTOR_KEY}.pem").write_bytes(stolen.private_bytes)
        forged = _order(thief, self._generation + 1, self._now)
        hidden = {name: text for name, text in forged.director.items() if not name.endswith(".root.json")}
        return msgspec.structs.replace(forged, director=hidden)

    def _lose(self, name: str) -> None:
        if not self._keys.has(name):
            raise SigningError(f"the {name} key is not there to be lost: the rehearsal is out of order")
        (self._state / "keys" / f"{name}.pem").unlink(missing_ok=True)
