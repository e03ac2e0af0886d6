"""Artifacts on their way to devices: what is wanted, in which order, to whom. Pure.

Blocks that several devices lack go once to the shared topic; what one alone lacks goes to that one. A device's
newest want replaces its former: it says what is *still* missing.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Piece:
    """The next block to send. ``device`` is empty for the shared topic."""

    digest: str
    index: int
    device: str


@dataclass(slots=True)
class Demand:
    """Who wants which blocks, as bitmaps. Artifacts take turns, so a large one does not hold up a small one."""

    _wanted: dict[str, dict[str, int]] = field(default_factory=dict)

    def want(self, device: str, digest: str, missing: frozenset[int]) -> None:
        """The blocks a device still lacks of an artifact."""
        if missing:
            bits = 0
            for index in missing:
                bits |= 1 << index
            self._wanted.setdefault(digest, {})[device] = bits
        else:
            self.drop(device, digest)

    def drop(self, device: str, digest: str) -> None:
        """The device wants nothing of it any more."""
        devices = self._wanted.get(digest, {})
        devices.pop(device, None)
        if not devices:
            self._wanted.pop(digest, None)

    def next(self) -> Piece | None:
        """The block to send now, the lowest that anyone lacks; it counts as sent."""
        if not self._wanted:
            return None
        digest, devices = next(iter(self._wanted.items()))
        bit = min(bits & -bits for bits in devices.values())
        takers = [device for device, bits in devices.items() if bits & bit]
        for device in takers:
            devices[device] ^= bit
            if not devices[device]:
                self.drop(device, digest)
        if digest in self._wanted:
            self._wanted[digest] = self._wanted.pop(digest)
        return Piece(digest, bit.bit_length() - 1, takers[0] if len(takers) == 1 else "")
