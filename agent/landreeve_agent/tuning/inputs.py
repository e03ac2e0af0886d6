"""What preflight needs of a release folder, read with reasons."""

from pathlib import Path

from landreeve.blobs.files import PLAIN, Files
from landreeve.release.layout import read_config
from landreeve.release.manifest import BadReleaseError, Gates
from landreeve_models.definition import BadDefinitionError, Definition, load_definition
from landreeve_models.samples import BadSampleError, Golden, read_golden


class RefusedError(Exception):
    """The release fails preflight."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(f"{cause}: {sentence}")
        self.cause = cause
        self.sentence = sentence


def read_gates(folder: Path, files: Files = PLAIN) -> Gates:
    """The release's gates; `RefusedError` when its config is none."""
    try:
        return read_config(folder, files).gates
    except BadReleaseError as error:
        raise RefusedError("bad_release", str(error)) from error


def read_release(folder: Path, files: Files = PLAIN) -> tuple[Definition, Gates, Golden]:
    """What a release is for, its gates and its golden set; `RefusedError` when one of them does not fit."""
    gates = read_gates(folder, files)
    try:
        definition = load_definition(folder, files)
        return definition, gates, read_golden(folder, definition, files)
    except (BadDefinitionError, BadSampleError) as error:
        raise RefusedError("bad_release", str(error)) from error
