"""Text to the token numbers of an uncased BERT vocabulary (WordPiece: Wu et al. 2016, arXiv 1609.08144).

Text is cleaned, lower-cased, stripped of accents and cut at spaces and punctuation; each word becomes the longest
pieces that the vocabulary knows, from left to right.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LONGEST_WORD = 100
CLASSIFY, SEPARATE, UNKNOWN, PADDING = "[CLS]", "[SEP]", "[UNK]", "[PAD]"
# Ideographs stand for themselves (Unicode blocks of CJK, its extensions and compatibility forms).
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WordPiece:
    """A vocabulary: piece → number; pieces within a word begin with ``##``."""

    vocabulary: Mapping[str, int]

    @classmethod
    def read(cls, text: str) -> "WordPiece":
        """The vocabulary in a ``vocab.txt``: one piece a line, numbered from 0."""
        return cls({piece: number for number, piece in enumerate(text.splitlines())})

    @classmethod
    def load(cls, path: Path) -> "WordPiece":
        """The vocabulary in a file."""
        return cls.read(path.read_text(encoding="utf-8"))

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text.

        >>> WordPiece({"the": 0, "in": 1, "##voice": 2, ".": 3, "[UNK]": 4}).pieces("The Invoice. é")
        ['the', 'in', '##voice', '.', '[UNK]']
        """
        return [piece for word in words(text) for piece in self._cut(word)]

    def encode(self, text: str, most: int = 256) -> list[int]:
        """The numbers of a text's pieces between the two marks, ``most`` in all: what is beyond is cut off."""
        inside = self.pieces(text)[: most - 2]
        return [self.vocabulary[piece] for piece in (CLASSIFY, *inside, SEPARATE)]

    def batch(self, texts: Sequence[str], most: int = 256) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask``, int64 (texts, tokens of the longest), padded at the right."""
        rows = [self.encode(text, most) for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=0)), self.vocabulary[PADDING], np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def _cut(self, word: str) -> list[str]:
        if len(word) > LONGEST_WORD:
            return [UNKNOWN]
        pieces, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self.vocabulary), None)
            if end is None:
                return [UNKNOWN]
            pieces.append(mark + word[start:end])
            start = end
        return pieces


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, lower-cased and without accents.

    >>> words("Réchauffé à 19°C, don't!")
    ['rechauffe', 'a', '19°c', ',', 'don', "'", 't', '!']
    """
    # Letter by letter: a Greek sigma is no other letter at a word's end.
    lower = "".join(_clean(c).lower() for c in text)
    plain = unicodedata.normalize("NFD", lower)
    spaced = "".join(f" {c} " if _stands_alone(c) else c for c in plain if unicodedata.category(c) != "Mn")
    return spaced.split()


def _clean(c: str) -> str:
    """A space for any space, nothing for control characters."""
    if c in "\t\n\r" or unicodedata.category(c) == "Zs":
        return " "
    if ord(c) in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
        return ""
    return c


def _stands_alone(c: str) -> bool:
    """Punctuation (all of ASCII's symbols count as such) and ideographs."""
    code = ord(c)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    ideograph = any(first <= code <= last for first, last in _IDEOGRAPHS)
    return ascii_mark or ideograph or unicodedata.category(c).startswith("P")
