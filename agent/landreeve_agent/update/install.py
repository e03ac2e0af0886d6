"""From an order to files on this box's disk: manifest, config, layers, each verified, then laid out as a folder."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from landreeve.blobs.errors import BlobError
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.layout import MANIFEST_FILE, materialise, read_config, sweep
from landreeve.release.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_SETTINGS_BYTES,
    BadReleaseError,
    Descriptor,
    Manifest,
    ReleaseConfig,
    parse_config,
    parse_manifest,
)

from landreeve_agent.link.transfer import FetchFailedError, Say, unheard
from landreeve_agent.update.pointer import POINTER_FILE, release_folder
from landreeve_agent.update.ports import Blobs, Fetcher
from landreeve_agent.update.standing import Order

RESERVE_BYTES = 64 * 1024 * 1024


class Installer:
    """Brings releases onto this box and removes those that are no longer needed."""

    def __init__(
        self, fetcher: Fetcher, blobs: Blobs, models_dir: Path, agent_version: str, files: Files = PLAIN
    ) -> None:
        self._fetcher = fetcher
        self._blobs = blobs
        self._models_dir = models_dir
        self._agent_version = agent_version
        self.files = files
        # Who removes blobs takes the turn and leaves when anything is busy: a blob that is here must not go between
        # the look for it and its use.
        self.turn = asyncio.Lock()
        self.busy = 0

    async def install(
        self, order: Order, progress: Callable[[int, int], None], held: Sequence[str] = (), say: Say = unheard
    ) -> Path:
        """The folder with every file of the release. ``progress`` is told (bytes here, bytes in all).

        ``held`` are releases that are here, best first: files may come as deltas to theirs. ``say`` hears why nothing
        comes for now.
        Goes on where it was interrupted; raises `FetchFailedError` when the release cannot be had or used.
        """
        async with self.turn:
            self.busy += 1
        try:
            return await self._install(order, progress, held, say)
        except BadReleaseError as error:
            raise FetchFailedError("bad_release", f"release {order.release[:12]}: {error}") from error
        except OSError as error:
            raise FetchFailedError("disk_failed", f"release {order.release[:12]} cannot be stored: {error}") from error
        finally:
            self.busy -= 1

    def folder(self, model: str, release: str) -> Path:
        """Where the release's files lie, or will."""
        return release_folder(self._models_dir, model, release)

    def claimed_loss(self, model: str, release: str) -> float | None:
        """The log loss the release claims on its golden set, if it does."""
        try:
            config = read_config(self.folder(model, release), self.files)
        except BadReleaseError:
            return None
        return config.gates.metrics.get("log_loss")

    def clean(self, model: str, keep: frozenset[str]) -> None:
        """Removes the folders of releases that are neither pinned nor on their way."""
        kept = {release[:12] for release in keep} | {POINTER_FILE}
        folder = self._models_dir / model
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)

    async def _install(self, order: Order, progress: Callable[[int, int], None], held: Sequence[str], say: Say) -> Path:
        manifest_bytes, manifest, config = await self._describe(order, say)
        whole = sum(layer.size for layer in manifest.layers)
        here = sum(layer.size for layer in manifest.layers if self._blobs.has(layer.sha256))
        folder = self.folder(order.model, order.release)
        await asyncio.to_thread(sweep, folder)
        # What an earlier attempt took is taken already; asked for twice, it would refuse what fits.
        self._reserve(order, self._to_fetch(manifest), 0 if (folder / MANIFEST_FILE).exists() else whole)
        known = [layer for release in held if release != order.release for layer in self._layers(release)]
        for layer in manifest.layers:
            if self._blobs.has(layer.sha256):
                continue
            report = _scaled(progress, here, layer.size, whole)
            blocks, bases = config.blocks.get(layer.sha256), bases_for(layer, known)
            await self._fetcher.fetch(layer.sha256, layer.size, blocks, report, bases=bases, say=say)
            here += layer.size
        await asyncio.to_thread(materialise, manifest_bytes, self._blobs, folder, self.files)
        return folder

    def _to_fetch(self, manifest: Manifest) -> int:
        """Bytes of disk that the files which are not here will take, beyond what was set aside for them before."""
        lacking = {layer.sha256: layer.size for layer in manifest.layers if not self._blobs.has(layer.sha256)}
        return sum(max(0, size - self._blobs.taken_bytes(digest)) for digest, size in lacking.items())

    def _layers(self, release: str) -> tuple[Descriptor, ...]:
        """The files of a release that is here; none when its manifest cannot be read."""
        try:
            return parse_manifest(self._blobs.read(release)).layers
        except (BadReleaseError, BlobError, OSError):
            return ()

    async def _describe(self, order: Order, say: Say) -> tuple[bytes, Manifest, ReleaseConfig]:
        """Manifest and config, checked against the order and this agent."""
        if order.manifest_bytes > MAX_MANIFEST_BYTES:
            raise BadReleaseError(f"a manifest of {order.manifest_bytes} bytes: at most {MAX_MANIFEST_BYTES}")
        await self._fetcher.fetch(order.release, order.manifest_bytes, say=say)
        manifest_bytes = self._blobs.read(order.release)
        manifest = parse_manifest(manifest_bytes)
        for part in (manifest.config, manifest.settings):
            if part.size > MAX_SETTINGS_BYTES:
                raise BadReleaseError(f"a config of {part.size} bytes: at most {MAX_SETTINGS_BYTES}")
            if not self._blobs.has(part.sha256):
                await self._fetcher.fetch(part.sha256, part.size, say=say)
        config = parse_config(self._blobs.read(manifest.settings.sha256))
        if config.model != order.model:
            raise BadReleaseError(f"it is a release of {config.model!r}, ordered for {order.model!r}")
        if config.component != order.component:
            raise BadReleaseError(f"it is of kind {config.component!r}, ordered as {order.component!r}")
        if _numbers(config.minimum_agent) > _numbers(self._agent_version):
            raise BadReleaseError(f"it needs agent {config.minimum_agent}, this is {self._agent_version}: update it")
        return manifest_bytes, manifest, config

    def _reserve(self, order: Order, to_fetch: int, to_lay_out: int) -> None:
        """Room for the blobs, for the files laid out from them, and to go on working, before the first block."""
        needed = to_fetch + to_lay_out + RESERVE_BYTES
        free = self._blobs.free_bytes()
        if free < needed:
            sentence = (
                f"Version {order.version} needs {needed // 2**20} MiB of disk, {free // 2**20} MiB are free; "
                "make room and order it again."
            )
            raise FetchFailedError("disk_full", sentence)


def bases_for(layer: Descriptor, known: Sequence[Descriptor]) -> tuple[str, ...]:
    """Blobs that may resemble the layer, best first: of the same path, then of the same kind and length."""
    same = [other.sha256 for other in known if other.path == layer.path]
    like = [other.sha256 for other in known if (other.media_type, other.size) == (layer.media_type, layer.size)]
    return tuple(dict.fromkeys((*same, *like)))


def _scaled(progress: Callable[[int, int], None], before: int, size: int, whole: int) -> Callable[[int, int], None]:
    return lambda done, blocks: progress(before + size * done // max(blocks, 1), whole)


def _numbers(version: str) -> tuple[int, ...]:
    """
    >>> _numbers("0.10.2") > _numbers("0.9")
    True
    """
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("+", maxsplit=1)[0].split("."))
