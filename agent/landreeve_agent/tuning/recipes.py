"""How a graph at reduced precision is made of a release's own, as a word. Pure.

A recipe is a kind and the nodes it leaves as they are: ``qdq``, ``nncf:keep=1f``. The mask's bit i stands for the
i-th node that could be quantised, so that a recipe which won on one box makes the same graph on another.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

KINDS = {
    "qdq": "static int8, calibrated on the release's sample",
    "nncf": "static int8 by NNCF",
    "dynamic": "int8 weights, activations quantised at each run",
    "weights8": "int8 weights alone",
    "weights4": "int4 weights alone",
    "stock-qdq": "onnxruntime's quantize_static with its defaults",
    "stock-dynamic": "onnxruntime's quantize_dynamic with its defaults",
}
PRECISIONS = {"weights4": "int4"}
_MASK = re.compile(r"(?P<kind>[a-z0-9-]+)(:keep=(?P<mask>[0-9a-f]+))?")


class BadRecipeError(ValueError):
    """A recipe nobody here can follow; the text says which are known."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A kind of `KINDS`, and the indices of the nodes it leaves at fp32."""

    kind: str
    keep: frozenset[int] = frozenset()

    @property
    def text(self) -> str:
        """The recipe in a word.

        >>> Recipe("qdq").text, Recipe("nncf", frozenset({0, 5})).text
        ('qdq', 'nncf:keep=21')
        """
        mask = sum(1 << index for index in self.keep)
        return f"{self.kind}:keep={mask:x}" if mask else self.kind

    @property
    def precision(self) -> str:
        """What the graph computes in: ``int8`` or ``int4``."""
        return PRECISIONS.get(self.kind, "int8")

    @property
    def graph(self) -> str:
        """The file name of the graph it makes."""
        return f"model.{self.text.replace(':keep=', '-')}.onnx"

    def keeping(self, nodes: Iterable[int]) -> "Recipe":
        """The same kind with these nodes left as they are."""
        return Recipe(self.kind, frozenset(nodes))


def parse_recipe(text: str) -> Recipe:
    """The recipe of a word; `BadRecipeError` when it is none.

    >>> parse_recipe("nncf:keep=21")
    Recipe(kind='nncf', keep=frozenset({0, 5}))
    """
    found = _MASK.fullmatch(text)
    if found is None or found["kind"] not in KINDS:
        raise BadRecipeError(f"recipe {text[:60]!r} is unknown; known are {', '.join(KINDS)}")
    mask = int(found["mask"] or "0", 16)
    return Recipe(found["kind"], frozenset(i for i in range(mask.bit_length()) if mask >> i & 1))
