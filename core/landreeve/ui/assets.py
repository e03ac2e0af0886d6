"""The files every page needs: one style sheet, one script, three fonts, one icon.

The script is the vendored uPlot followed by our own files, joined once at start-up: separate deferred scripts
raced each other when this was tried. Names carry a digest of the content, so browsers keep them for ever.
"""

import gzip
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

STYLES: Final = ("tokens.css", "base.css", "shell.css", "parts.css", "pages.css")
SCRIPTS: Final = ("start.js", "morph.js", "live.js", "chart.js", "forms.js", "page.js")
FONTS: Final = ("plex-sans-latin.woff2", "plex-arabic-400.woff2", "plex-arabic-600.woff2")


@dataclass(frozen=True)
class Asset:
    """One file: ``name`` as served, its bytes, media type, and gzip bytes where they are smaller."""

    name: str
    body: bytes
    kind: str
    packed: bytes | None


class Assets:
    """All assets by served name. ``Assets.url("app.js")`` is the path of the current content."""

    def __init__(self, files: Iterable[tuple[str, bytes, str]], base: str = "/assets/") -> None:
        self._base = base
        self._served: dict[str, Asset] = {}
        self._names: dict[str, str] = {}
        for name, body, kind in files:
            self._add(name, body, kind)

    def url(self, name: str) -> str:
        """The address of an asset by its plain name. Raises KeyError for a name nobody made."""
        return self._base + self._names[name]

    def find(self, served: str) -> Asset | None:
        """The asset with this served (digest-bearing) name, else None."""
        return self._served.get(served)

    def _add(self, name: str, body: bytes, kind: str) -> None:
        digest = hashlib.sha256(body).hexdigest()[:12]
        stem, _, suffix = name.rpartition(".")
        served = f"{stem}.{digest}.{suffix}"
        packed = None if suffix == "woff2" else gzip.compress(body, 9, mtime=0)
        self._names[name] = served
        self._served[served] = Asset(served, body, kind, packed)


def load(base: str = "/assets/") -> Assets:
    """Read and join the package's own files. About 10 ms, once per process."""
    here = resources.files("landreeve.ui")
    fonts = {name: (here / "vendor" / "fonts" / name).read_bytes() for name in FONTS}
    files = [(name, body, "font/woff2") for name, body in fonts.items()]
    css = _style(here, {name: hashlib.sha256(body).hexdigest()[:12] for name, body in fonts.items()})
    files.append(("app.css", css, "text/css; charset=utf-8"))
    files.append(("app.js", _script(here), "text/javascript; charset=utf-8"))
    files.append(("icon.svg", (here / "static" / "icon.svg").read_bytes(), "image/svg+xml"))
    return Assets(files, base)


def _style(here: Traversable, digests: Mapping[str, str]) -> bytes:
    parts = [(here / "vendor" / "uplot" / "uPlot.min.css").read_text("utf-8")]
    parts += [(here / "static" / "css" / name).read_text("utf-8") for name in STYLES]
    text = "\n".join(parts)
    for name, digest in digests.items():
        text = text.replace(f"url({name})", f"url({name.removesuffix('.woff2')}.{digest}.woff2)")
    return re.sub(r"/\*.*?\*/\s*", "", text, flags=re.DOTALL).encode()


def _script(here: Traversable) -> bytes:
    parts = [(here / "vendor" / "uplot" / "uPlot.iife.min.js").read_text("utf-8")]
    parts += [(here / "static" / "js" / name).read_text("utf-8") for name in SCRIPTS]
    return "\n;\n".join(parts).encode()
