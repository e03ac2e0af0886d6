"""Any sketch to and from its JSON document, and merging of two documents of the same kind."""

from typing import Any

from landreeve.sketch.categories import Categories
from landreeve.sketch.errors import BadSketchError, UnlikeSketchesError
from landreeve.sketch.histogram import Histogram
from landreeve.sketch.moments import Moments

Sketch = Histogram | Categories | Moments
_KINDS: dict[str, type[Histogram] | type[Categories] | type[Moments]] = {
    "histogram": Histogram,
    "categories": Categories,
    "moments": Moments,
}


def from_document(document: object) -> Sketch:
    """The sketch of a document; `BadSketchError` names what is wrong."""
    if not isinstance(document, dict):
        raise BadSketchError(f"sketch: expected an object, got {type(document).__name__}")
    kind = _KINDS.get(str(document.get("kind")))
    if kind is None:
        raise BadSketchError(f"sketch: kind {str(document.get('kind'))[:40]!r} is unknown; known are {sorted(_KINDS)}")
    return kind.from_document(document)


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The document of both sketches together: what the hub does with two sites' windows of the same release."""
    first, second = from_document(a), from_document(b)
    if isinstance(first, Histogram) and isinstance(second, Histogram):
        return first.merge(second).to_document()
    if isinstance(first, Categories) and isinstance(second, Categories):
        return first.merge(second).to_document()
    if isinstance(first, Moments) and isinstance(second, Moments):
        return first.merge(second).to_document()
    raise UnlikeSketchesError(f"a {a.get('kind')} and a {b.get('kind')} cannot be merged")
