"""The folders of the catalog: a definition, data, and the evidence for each shipped model."""

from pathlib import Path

from landreeve_models.definition import Definition, load_definition

_PACKAGE = Path(__file__).resolve().parent.parent


def catalog_folder(name: str) -> Path:
    """The folder of a shipped model, installed or in the source tree; `LookupError` where there is none."""
    for root in (_PACKAGE / "catalog", _PACKAGE.parent / "catalog"):
        if (root / name / "definition.json").is_file():
            return root / name
    raise LookupError(f"model {name!r}: not in the catalog of this installation")


def catalog_definition(name: str) -> Definition:
    """A shipped model's definition."""
    return load_definition(catalog_folder(name))
