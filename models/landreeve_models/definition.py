"""What a model is for, before any release of it exists: columns, label, windows, recipes, gates, policies.

A definition is written once by a person (JSON or TOML), shipped to the site, and carried inside every release as
``definition.json``. The same document drives serving (what a row must look like), drift (windows, thresholds) and
training (recipes, look-back), so none of them can disagree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.manifest import Column, Gates, Signature, TensorSpec
from landreeve.wire.ids import BadIdError, check_id

KINDS = ("number", "category")
TASKS = ("binary", "classification", "embedding", "anomaly")
DATATYPES = ("FP64", "FP32", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
# What a tensor model is judged by on its golden set (`evaluate.cost`), by task; the first is the usual one.
METRICS_OF = {
    "binary": ("log_loss", "auc"),
    "classification": ("accuracy",),
    "embedding": ("cosine", "neighbours"),
    "anomaly": ("auc",),
}
MAX_TENSORS = 64
MAX_RANK = 8
MAX_COLUMNS = 4096
MAX_CATEGORY_CHARS = 200


class BadDefinitionError(ValueError):
    """A definition that cannot be used; the text says which member is wrong and what is accepted."""


class Retrain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When and on what a challenger is trained.

    The first model is trained on ``first_days`` of data; a later one on ``lookback_days`` before the window that lost
    quality, ``cooldown_days`` at the earliest after the one before (event time). ``min_labelled`` labels must be known
    in that window.
    """

    first_days: int = 59
    lookback_days: int = 120
    cooldown_days: int = 28
    min_labelled: int = 0


class DriftPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a closed window is judged.

    ``alpha`` is the chance that a window without any change passes the significance threshold of at least one
    column (Bonferroni); ``min_psi`` the effect-size floor that a column must reach besides; ``min_rows`` and
    ``min_labelled`` the least that is judged at all; ``min_excess`` (nats) the smallest excess log loss and
    ``quality_alpha`` the one-sided error of one window; ``max_auc_fall`` the fall of AUC below the claimed one that
    counts by itself; ``persist`` how many windows in a row must agree.
    """

    alpha: float = 0.01
    min_psi: float = 0.2
    min_rows: int = 100
    min_labelled: int = 100
    min_excess: float = 0.02
    quality_alpha: float = 0.01
    max_auc_fall: float = 0.12
    persist: int = 2


def _all_recipes() -> dict[str, dict[str, Any]]:
    return {"boosting": {}, "mlp": {}}


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's definition.

    ``label`` names the truth that arrives late (0 or 1), at most ``label_delay_hours`` of event time after the row;
    ``window_days`` is the length of a drift window; ``recipes`` maps a recipe's name (``mlp``, ``boosting``) to its
    configuration; ``gates`` are the limits a release must keep (the claimed ``metrics`` are filled by training).

    A *tensor model* has ``tensors`` (the graph's inputs, as callers send them) and ``outputs``; its ``columns`` are
    then the numbers derived from each input (`derived_columns`): they are captured and watched for drift in place of
    pictures and texts, which never leave the request. ``task`` says what the first output is: ``binary`` a probability
    (rows,), ``classification`` a score for each class (rows, classes), ``embedding`` a vector (rows, d), ``anomaly``
    a score (rows,); ``gates.metric`` is then one of `METRICS_OF` the task. Recipes train on columns: a tensor model
    has none.
    """

    name: str
    purpose: str
    columns: tuple[Column, ...] = ()
    label: str
    task: str = "binary"
    tensors: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    output: str = "probability"
    output_unit: str = "probability"
    window_days: int = 7
    label_delay_hours: float = 24.0
    recipes: dict[str, dict[str, Any]] = msgspec.field(default_factory=_all_recipes)
    gates: Gates = Gates()
    retrain: Retrain = Retrain()
    drift: DriftPolicy = DriftPolicy()

    @property
    def tabular(self) -> bool:
        """Whether callers send columns; else they send the graph's own tensors."""
        return not self.tensors

    @property
    def numbers(self) -> tuple[Column, ...]:
        """The numeric columns, in order."""
        return tuple(column for column in self.columns if column.kind == "number")

    @property
    def categories(self) -> tuple[Column, ...]:
        """The categorical columns, in order."""
        return tuple(column for column in self.columns if column.kind == "category")

    def signature(self) -> Signature:
        """The signature of every release of this model."""
        return Signature(
            inputs=self.columns,
            output=self.output,
            output_unit=self.output_unit,
            width=len(self.columns) if self.tabular else 0,
            tensors=self.tensors,
            outputs=self.outputs,
        )


def derived_columns(tensors: Sequence[TensorSpec]) -> tuple[Column, ...]:
    """The numbers a tensor model's rows are captured by: mean and standard deviation of each input.

    >>> [c.name for c in derived_columns([TensorSpec(name="page", datatype="FP32", shape=(-1, 3, 4, 4))])]
    ['page.mean', 'page.std']
    """
    return tuple(Column(name=f"{t.name}.{part}", kind="number") for t in tensors for part in ("mean", "std"))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one field of a row."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


def parse_definition(data: bytes, *, form: str = "json") -> Definition:
    """The definition in JSON or TOML bytes; `BadDefinitionError` names the member that is wrong."""
    decode = msgspec.toml.decode if form == "toml" else msgspec.json.decode
    try:
        definition: Definition = decode(data, type=Definition)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadDefinitionError(f"definition: {error}") from error
    except RecursionError as error:
        raise BadDefinitionError("definition: nested too deeply") from error
    return check_definition(definition)


def load_definition(path: Path, files: Files = PLAIN) -> Definition:
    """The definition in a ``.json`` or ``.toml`` file, or in ``definition.json`` of a folder."""
    file = path / "definition.json" if path.is_dir() else path
    try:
        data = files.read(file)
    except OSError as error:
        raise BadDefinitionError(f"definition {file}: cannot be read: {error.strerror}") from error
    return parse_definition(data, form="toml" if file.suffix == ".toml" else "json")


def encode_definition(definition: Definition) -> bytes:
    """Canonical JSON: the same definition always has the same bytes."""
    return msgspec.json.encode(definition, order="sorted")


def check_definition(definition: Definition) -> Definition:
    """The same definition when its members fit together; else `BadDefinitionError`."""
    try:
        check_id(definition.name)
    except BadIdError as error:
        raise BadDefinitionError(f"name: {error}") from error
    if definition.task not in TASKS:
        raise BadDefinitionError(f"task {definition.task[:40]!r} is unknown; accepted are {', '.join(TASKS)}")
    if definition.tabular and definition.task != "binary":
        raise BadDefinitionError(f"task {definition.task!r}: a model of columns is binary; give tensors and outputs")
    if not definition.tabular:
        definition = _check_tensors(definition)
    if not 0 < len(definition.columns) <= MAX_COLUMNS:
        raise BadDefinitionError(f"columns: {len(definition.columns)} given, 1 to {MAX_COLUMNS} are accepted")
    seen: set[str] = set()
    for index, column in enumerate(definition.columns):
        _check_column(index, column, seen, definition.label)
        seen.add(column.name)
    if definition.window_days < 1 or definition.label_delay_hours < 0:
        raise BadDefinitionError("window_days must be at least 1 and label_delay_hours at least 0")
    if definition.tabular and not definition.recipes:
        raise BadDefinitionError("recipes: at least one is needed, for example {'boosting': {}}")
    return definition


def _check_tensors(definition: Definition) -> Definition:
    """The definition of a tensor model with its derived columns."""
    if not definition.outputs:
        raise BadDefinitionError("outputs: a model with tensors needs at least one output")
    for member, specs in (("tensors", definition.tensors), ("outputs", definition.outputs)):
        if len(specs) > MAX_TENSORS:
            raise BadDefinitionError(f"{member}: {len(specs)} given, at most {MAX_TENSORS} are accepted")
        if len({spec.name for spec in specs}) != len(specs):
            raise BadDefinitionError(f"{member}: a name occurs twice")
        for index, spec in enumerate(specs):
            _check_tensor(f"{member}[{index}] {spec.name[:60]!r}", spec)
    _check_task(definition)
    derived = derived_columns(definition.tensors)
    if definition.columns not in ((), derived):
        raise BadDefinitionError("columns: leave them out where tensors are given; they are derived from these")
    if definition.recipes not in ({}, _all_recipes()):
        raise BadDefinitionError("recipes: leave them out where tensors are given; recipes train on columns")
    return msgspec.structs.replace(definition, columns=derived, recipes={})


def _check_task(definition: Definition) -> None:
    """The first output is what the task says, and the gate judges by a metric that reads it."""
    first = definition.outputs[0]
    where = f"outputs[0] {first.name!r}"
    if first.datatype not in ("FP32", "FP16", "FP64"):
        raise BadDefinitionError(f"{where}: datatype {first.datatype}; a task's first output is FP32, FP16 or FP64")
    of_rows = definition.task in ("binary", "anomaly")
    if of_rows and first.shape not in ((-1,), (-1, 1)):
        raise BadDefinitionError(
            f"{where}: shape {list(first.shape)}; task {definition.task!r} answers [-1], one a row"
        )
    if not of_rows and (len(first.shape) != 2 or first.shape[1] < 2):
        raise BadDefinitionError(
            f"{where}: shape {list(first.shape)}; task {definition.task!r} answers [-1, n], n of 2 or more"
        )
    metrics = METRICS_OF[definition.task]
    if definition.gates.metric not in metrics:
        accepted = " or ".join(metrics)
        raise BadDefinitionError(
            f"gates.metric {definition.gates.metric[:40]!r}: task {definition.task!r} is judged by {accepted}"
        )


def _check_tensor(where: str, spec: TensorSpec) -> None:
    if not spec.name or len(spec.name) > MAX_CATEGORY_CHARS:
        raise BadDefinitionError(f"{where}: name must have 1 to {MAX_CATEGORY_CHARS} characters")
    if spec.datatype not in DATATYPES:
        raise BadDefinitionError(f"{where}: datatype {spec.datatype[:20]!r}; accepted are {', '.join(DATATYPES)}")
    if (
        not 0 < len(spec.shape) <= MAX_RANK
        or spec.shape[0] != -1
        or any(axis < 1 and axis != -1 for axis in spec.shape)
    ):
        raise BadDefinitionError(
            f"{where}: shape {list(spec.shape)}: 1 to {MAX_RANK} axes; the first is -1 (rows), others -1 or 1 and more"
        )


def _check_column(index: int, column: Column, seen: set[str], label: str) -> None:
    where = f"columns[{index}] {column.name!r}"
    if not column.name or len(column.name) > MAX_CATEGORY_CHARS:
        raise BadDefinitionError(f"{where}: name must have 1 to {MAX_CATEGORY_CHARS} characters")
    if column.name in seen:
        raise BadDefinitionError(f"{where}: the name occurs twice")
    if column.name == label:
        raise BadDefinitionError(f"{where}: the label cannot be an input column")
    if column.kind not in KINDS:
        raise BadDefinitionError(f"{where}: kind {column.kind!r} is unknown; accepted are {', '.join(KINDS)}")
    if column.low is not None and column.high is not None and column.low > column.high:
        raise BadDefinitionError(f"{where}: low {column.low} is above high {column.high}")


def check_row(definition: Definition, row: Mapping[str, object]) -> tuple[Problem, ...]:
    """Everything wrong with a row, each problem naming its field; empty when the row is good.

    A missing optional column, null and NaN all mean "unknown".

    >>> d = Definition(name="m", purpose="", label="y", columns=(Column(name="a", kind="number", low=0),))
    >>> [str(p) for p in check_row(d, {"a": -1, "b": 2})]
    ['b: not a column of model m; known are a', 'a: -1 is below the lowest accepted value 0']
    """
    known = {column.name for column in definition.columns}
    problems = [
        Problem(str(name)[:80], f"not a column of model {definition.name}; known are {_listed(known)}")
        for name in row
        if name not in known
    ]
    for column in definition.columns:
        reason = check_value(column, row.get(column.name))
        if reason:
            problems.append(Problem(column.name, reason))
    return tuple(problems)


def check_value(column: Column, value: object) -> str:
    """What is wrong with one value of a column, or the empty text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "is required" if column.required else ""
    if column.kind == "category":
        return _check_category(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"expected a number{_unit(column)}, got {type(value).__name__} {_short(value)}"
    if isinstance(value, float) and math.isinf(value):
        return "must be finite"
    if column.low is not None and value < column.low:
        return f"{_short(value)} is below the lowest accepted value {column.low}"
    if column.high is not None and value > column.high:
        return f"{_short(value)} is above the highest accepted value {column.high}"
    return ""


def check_label(value: object) -> str:
    """What is wrong with a label (0 or 1), or the empty text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in (0, 1):
        return f"a label is 0 or 1, got {_short(value)}"
    return ""


def _check_category(value: object) -> str:
    if not isinstance(value, str):
        return f"expected text, got {type(value).__name__} {_short(value)}"
    if not 0 < len(value) <= MAX_CATEGORY_CHARS:
        return f"text must have 1 to {MAX_CATEGORY_CHARS} characters, got {len(value)}"
    return ""


def _unit(column: Column) -> str:
    return f" in {column.unit}" if column.unit else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
