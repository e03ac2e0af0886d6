"""Pages of text as a scanner or a phone gives them, turned by a known angle: labelled images drawn from a seed.

The words stand in Aileron, the font that Pillow carries (CC0). Paper is uneven, light falls from one side, lines are
a little skew, and the sensor adds noise: a classifier that only knows clean print fails here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = (0, 90, 180, 270)
SIDE = 224
SHORT_SIDE = 256
NOISE = (0.02, 0.08)
MAX_WORDS = 18
_VOCABULARY = """
    account address agreement amount annual appointment approved article available balance before between branch
    building business careful certificate change clinic company contact contract copy corner cost counter customer
    daily date deliver department deposit description discount document door due early employee energy enter equipment
    evening every exchange expiry family final first floor follow form garden general goods guarantee hand heating hour
    house however important include information insurance invoice item January keep kitchen language last leave letter
    light list local machine manager material measure medicine meeting member message minute morning name network
    never notice number office open order other page paper parcel patient payment period person phone place please
    policy price printed product quality quarter question reason receipt record refund register remaining repair
    request return safety school season second section service sheet shop signature site small stock storage street
    supplier table tax terms thank these ticket time today total transport under until value vehicle visit warehouse
    warranty water week window within without workshop written year your
"""
_WORDS = tuple(_VOCABULARY.split())


@dataclass(frozen=True, slots=True)
class Pages:
    """``images`` uint8 (n, 224, 224, 3), red, green, blue; ``turns`` (n,) the index into `CLASSES` of the angle,
    clockwise in degrees, by which the sheet lies turned."""

    images: NDArray[np.uint8]
    turns: NDArray[np.int64]


def draw_pages(count: int, seed: int) -> Pages:
    """That many pages, every angle equally often; the same seed gives the same pages."""
    random = np.random.default_rng(seed)
    turns = random.permutation(np.arange(count) % len(CLASSES)).astype(np.int64)
    return Pages(np.stack([_photograph(_sheet(random), int(turn), random) for turn in turns]), turns)


def fit_to_input(image: Any) -> Any:
    """The middle of a Pillow image, (224, 224), at a short side of 256: what the classifier was trained on."""
    from PIL import Image

    scale = SHORT_SIDE / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + SIDE, top + SIDE))


def _sheet(random: np.random.Generator) -> Any:
    """A sheet of print: a heading, then paragraphs in one or two columns, now and then a ruled table."""
    from PIL import Image, ImageDraw

    width, height = int(random.integers(480, 720)), int(random.integers(560, 860))
    sheet = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(sheet)
    ink, margin = int(random.integers(0, 70)), int(random.integers(24, 64))
    columns = 2 if width > 600 and random.random() < 0.4 else 1
    y = _heading(draw, random, margin, ink)
    room = (width - margin * (columns + 1)) // columns
    for column in range(columns):
        left = margin + column * (room + margin)
        _column(draw, random, (left, y, left + room, height - margin), ink)
    return sheet


def _heading(draw: Any, random: np.random.Generator, margin: int, ink: int) -> int:
    from PIL import ImageFont

    if random.random() < 0.3:
        return margin
    size = int(random.integers(22, 38))
    words = " ".join(random.choice(_WORDS, int(random.integers(2, 4)))).title()
    draw.text((margin, margin), words, ink, ImageFont.load_default(size))
    return margin + 2 * size


def _column(draw: Any, random: np.random.Generator, box: tuple[int, int, int, int], ink: int) -> None:
    from PIL import ImageFont

    left, y, right, bottom = box
    size = int(random.integers(14, 22))
    font, step = ImageFont.load_default(size), int(size * random.uniform(1.3, 1.7))
    while y + step < bottom:
        if random.random() < 0.12:
            y = _table(draw, random, (left, y, right, bottom), ink, step)
            continue
        for _ in range(int(random.integers(2, 8))):
            if y + step >= bottom:
                return
            draw.text((left, y), _line(random, font, right - left), ink, font)
            y += step
        y += step // 2


def _line(random: np.random.Generator, font: Any, room: int) -> str:
    """As many words as fit; some are numbers."""
    picks, numbers = random.integers(0, len(_WORDS), MAX_WORDS), random.random(MAX_WORDS) < 0.08
    words = [str(pick * 37 + 1) if number else _WORDS[pick] for pick, number in zip(picks, numbers, strict=True)]
    space = float(font.getlength(" "))
    ends = np.cumsum([float(font.getlength(word)) + space for word in words])
    return " ".join(words[: int(np.searchsorted(ends, room + space))])


def _table(draw: Any, random: np.random.Generator, box: tuple[int, int, int, int], ink: int, step: int) -> int:
    from PIL import ImageFont

    left, y, right, bottom = box
    rows, columns = int(random.integers(2, 6)), int(random.integers(2, 5))
    cell, font = (right - left) // columns, ImageFont.load_default(step * 0.55)
    for row in range(rows):
        if y + 2 * step >= bottom:
            break
        for column in range(columns):
            x = left + column * cell
            draw.rectangle((x, y, x + cell, y + step), outline=ink)
            words = str(random.choice(_WORDS)) if column == 0 or row == 0 else str(random.integers(1, 99999))
            draw.text((x + 4, y + step * 0.2), words[: cell // 9], ink, font)
        y += step
    return y + step // 2


def _photograph(sheet: Any, turn: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """The sheet turned by its angle and a little skew, unevenly lit, blurred and noisy."""
    from PIL import Image, ImageFilter

    skew = sheet.rotate(float(random.normal(0, 2)), Image.Resampling.BICUBIC, fillcolor=255)
    # Pillow turns counter-clockwise, our angles go clockwise.
    turned = skew.rotate(-CLASSES[turn], expand=True).filter(ImageFilter.GaussianBlur(random.uniform(0, 1.6)))
    grey = np.asarray(fit_to_input(turned), np.float32) / 255
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = 1 + random.uniform(-0.3, 0.3) * across[:, None] + random.uniform(-0.3, 0.3) * across[None, :]
    paper = random.uniform(0.5, 0.98) * np.array([1, random.uniform(0.94, 1), random.uniform(0.85, 1)])
    noise = random.normal(0, random.uniform(*NOISE), (SIDE, SIDE, 3))
    colour = (grey * light)[:, :, None] * paper + noise
    return (np.clip(colour, 0, 1) * 255).round().astype(np.uint8)
