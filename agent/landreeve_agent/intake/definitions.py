"""The model definitions of a site: one file each, read anew when it changes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from landreeve.blobs.durable import write_durably
from landreeve.wire.ids import BadIdError, check_id
from landreeve_models.definition import BadDefinitionError, Definition, encode_definition, load_definition


@dataclass
class Definitions(Mapping[str, Definition]):
    """Definitions by model name, in the folder ``definitions/``.

    A file that cannot be used is left out of the mapping and named in `problems`.
    """

    folder: Path
    _known: dict[str, tuple[tuple[int, int], Definition]] = field(default_factory=dict)
    _bad: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Definition:
        found = self._load(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        names = sorted(path.stem for path in self.folder.glob("*.json")) if self.folder.is_dir() else []
        return (name for name in names if self._load(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with the files that cannot be used, by name."""
        len(self)
        return dict(self._bad)

    def put(self, definition: Definition) -> None:
        """Keep a definition, in place of the one of the same name."""
        write_durably(self.folder / f"{check_id(definition.name)}.json", encode_definition(definition), 0o600)

    def _load(self, name: str) -> Definition | None:
        try:
            path = self.folder / f"{check_id(name)}.json"
            status = path.stat()
        except (BadIdError, FileNotFoundError):
            self._bad.pop(name, None)
            return None
        mark = (status.st_mtime_ns, status.st_size)
        if name in self._known and self._known[name][0] == mark:
            return self._known[name][1]
        return self._read(name, path, mark)

    def _read(self, name: str, path: Path, mark: tuple[int, int]) -> Definition | None:
        try:
            definition = load_definition(path)
        except BadDefinitionError as error:
            self._bad[name] = str(error)
            return None
        self._bad.pop(name, None)
        self._known[name] = (mark, definition)
        return definition
