"""What a release is refused for. Every hostile file is made here; a pickle that runs would leave a mark."""

import contextlib
import io
import json
import pickle
import pickletools
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.release import onnx_wire
from landreeve.release.contents import check_contents, what_is
from landreeve.release.layout import Packed, materialise, pack, write_folder
from landreeve.release.manifest import (
    BadReleaseError,
    Gates,
    Lineage,
    ReleaseConfig,
    Signature,
    parse_manifest,
)
from landreeve.release.paths import check_plain, check_together
from landreeve.release.vet import vet

from tests.fakes.graphs import field, graph_of, tensors_of, varint

FILES = {
    "model.onnx": graph_of(b"all right"),
    "golden.safetensors": tensors_of(b"golden"),
    "definition.json": b'{"name": "m"}',
    "card.md": b"# card\n",
}


def release(files: dict[str, bytes] | None = None) -> Packed:
    config = ReleaseConfig(
        model="m",
        family="f",
        created="2026-01-01T00:00:00Z",
        signature=Signature(inputs=(), output="p"),
        gates=Gates(),
        lineage=Lineage(),
    )
    return pack(FILES | (files or {}), config)


def vetted(packed: Packed) -> Any:
    return vet(packed.manifest_bytes, packed.blobs.__getitem__)


# --- pickle ---


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


def zipped(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def npz(data: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, x=np.array([data], object), allow_pickle=True)
    return out.getvalue()


PICKLES: dict[str, Callable[[Trap], bytes]] = {
    **{f"protocol {n}": (lambda trap, n=n: pickle.dumps(trap, n)) for n in range(6)},  # type: ignore[misc]
    "optimised": lambda trap: pickletools.optimize(pickle.dumps(trap)),
    "with rubbish behind it": lambda trap: pickle.dumps(trap) + b"\0" * 99,
    "cut off": lambda trap: pickle.dumps(trap)[:-1],
    "in a zip, as PyTorch": lambda trap: zipped("archive/data.pkl", pickle.dumps(trap)),
    "in an npz": npz,
    "in a zip with another name": lambda trap: zipped("weights.bin", pickle.dumps(trap)),
    "before a safetensors": lambda trap: pickle.dumps(trap) + FILES["golden.safetensors"],
    "in a gzipped tar": lambda trap: tar_of({"data.pkl": pickle.dumps(trap)}, "w:gz"),
    "in a tar": lambda trap: tar_of({"data.pkl": pickle.dumps(trap)}, "w"),
}


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("path", FILES)
def test_pickle_is_refused_under_every_name_and_never_runs(tmp_path: Path, kind: str, path: str) -> None:
    mark = tmp_path / "ran"
    trap = Trap(mark)
    data = PICKLES[kind](trap)
    packed = release({path: data})
    for door in (lambda: vetted(packed), lambda: write_folder(packed, tmp_path / "r")):
        with pytest.raises(BadReleaseError, match=path.replace(".", r"\.")):
            door()
    assert sorted(tmp_path.iterdir()) == []
    with_pickle = ("protocol 4", "optimised", "with rubbish behind it")
    if kind in with_pickle:  # that the trap is one: whoever does load it, is caught
        pickle.loads(data)  # noqa: S301
        assert mark.exists()


@pytest.mark.parametrize(
    "name", ["weights.pkl", "model.pt", "model.bin", "model.ckpt", "model.h5", "model.joblib", "x"]
)
def test_formats_that_can_run_code_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadReleaseError, match="never pickle"):
        release({name: b"x"})


def test_sniffing_names_what_it_found() -> None:
    found = {what_is(sign + b"rest") for sign in (b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"GGUF", b"\x7fELF")}
    assert found == {"a zip archive", "gzip", "zstd", "GGUF", "a program"}
    assert all(what_is(data) == "" for data in FILES.values())


# --- ONNX ---


def tensor(*, dims: tuple[int, ...] = (2,), kind: int = 1, raw: bytes = b"\0" * 8, rest: bytes = b"") -> bytes:
    return b"".join(field(1, d) for d in dims) + field(2, kind) + field(8, b"w") + field(9, raw) + rest


def nested(depth: int) -> bytes:
    """Graphs within attributes of nodes of graphs."""
    graph = field(1, field(4, b"Identity"))
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return graph


EXTERNAL = field(13, field(1, b"location") + field(2, b"/etc/passwd"))
GRAPHS = {
    "external data": (graph_of(nodes=field(5, tensor(rest=EXTERNAL))), "lies outside the file"),
    "external location": (graph_of(nodes=field(5, tensor(rest=field(14, 1)))), "lies outside the file"),
    "external in an attribute": (
        graph_of(nodes=field(1, field(4, b"Constant") + field(5, field(5, tensor(rest=EXTERNAL))))),
        "lies outside the file",
    ),
    "external in a sparse tensor": (graph_of(nodes=field(15, field(1, tensor(rest=EXTERNAL)))), "lies outside"),
    "external in a branch": (
        graph_of(nodes=field(1, field(4, b"If") + field(5, field(6, field(5, tensor(rest=EXTERNAL)))))),
        "lies outside the file",
    ),
    "foreign domain": (graph_of(domain=b"com.evil"), "operator domain 'com.evil' is not accepted"),
    "foreign opset": (graph_of(rest=field(8, field(1, b"com.evil") + field(2, 1))), "'com.evil' is not accepted"),
    "microsoft's other operators": (graph_of(domain=b"com.microsoft"), "'com.microsoft' is not accepted"),
    "opset of the future": (graph_of(rest=field(8, field(2, 99))), "opset 99"),
    "local function": (graph_of(rest=field(25, b"")), "local functions"),
    "training graph": (graph_of(rest=field(20, b"")), "training graphs"),
    "two graphs": (graph_of(rest=field(7, b"")), "no ONNX graph"),
    "no node": (field(1, 8) + field(7, b""), "no ONNX graph"),
    "nesting": (graph_of(nodes=nested(12)), "nested deeper"),
    "nesting without end": (graph_of(nodes=nested(3000)), "nested deeper"),
    "huge declared shape": (graph_of(nodes=field(5, tensor(dims=(2**40, 2**20), raw=b""))), "does not carry them"),
    "huge declared shape, typed": (
        graph_of(nodes=field(5, field(1, 2**62) + field(2, 1) + field(4, b"\0" * 8))),
        "does not carry them",
    ),
    "huge declared shape, behind a dimension parsers pass over": (
        graph_of(nodes=field(5, tensor(dims=(2**40,), raw=b"", rest=varint(1 << 3 | 1) + bytes(8)))),
        "does not carry them",
    ),
    "entries parsers pass over": (
        graph_of(nodes=field(5, field(1, 50) + field(2, 1) + field(4, 1) * 50)),
        "does not carry them",
    ),
    "opset of the future, behind one parsers pass over": (
        graph_of(rest=field(8, field(2, 99) + varint(2 << 3 | 5) + bytes(4))),
        "opset 99",
    ),
    "external data under a tag that onnxruntime cuts to 32 bits": (
        graph_of(nodes=field(5, tensor(rest=varint(1 << 32 | 13 << 3 | 2) + EXTERNAL[1:]))),
        "field number that does not exist",
    ),
    "negative dimension": (graph_of(nodes=field(5, tensor(dims=(2**64 - 1,)))), "does not carry them"),
    "many dimensions": (graph_of(nodes=field(5, field(1, b"\1" * 99) + field(2, 1))), "more than 16 dimensions"),
    "unknown datatype": (graph_of(nodes=field(5, tensor(kind=77))), "unknown datatype"),
    "merged tensors": (
        graph_of(nodes=field(1, field(4, b"C") + field(5, field(5, tensor()) + field(5, tensor())))),
        "holds two values",
    ),
    "cut off": (graph_of(b"x" * 99)[:60], "no ONNX graph"),
    "number without end": (b"\xff" * 40, "no ONNX graph"),
    "groups": (b"\x0b\x0c", "no ONNX graph: wire type 3"),
    "text": (b"not a graph at all", "no ONNX graph"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_that_must_not_be_loaded_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    data, reason = GRAPHS[name]
    packed = release({"model.onnx": data})
    for door in (lambda: vetted(packed), lambda: write_folder(packed, tmp_path / "r")):
        with pytest.raises(BadReleaseError, match=reason) as refused:
            door()
        assert "model.onnx" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_graph_of_millions_of_fields_is_given_up_early() -> None:
    many = graph_of(nodes=field(5, field(2, 1) + field(7, 1) * 1_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_wire, "MAX_FIELDS", 1000)
        with pytest.raises(BadReleaseError, match="more than 1000 fields"):
            onnx_wire.check_graph(many)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_wire, "MAX_NODES", 5)
        with pytest.raises(BadReleaseError, match="more than 5 nodes"):
            onnx_wire.check_graph(graph_of(nodes=field(1, field(4, b"Identity")) * 9))


# --- safetensors, JSON, text ---

DEEP = b'"x":' + b"[" * 101 + b"]" * 101
LONG = b"[" * 5000 + b"]" * 5000
FILES_THAT_ARE_NONE = {
    "header beyond the file": ("golden.safetensors", (2**40).to_bytes(8, "little") + b"{}", "does not fit"),
    "huge declared shape": ("golden.safetensors", tensors_of(b"x", shape=[2**60, 2**60]), "does not lie where"),
    "negative shape": ("golden.safetensors", tensors_of(b"x", shape=[-1]), "unknown dtype"),
    "unknown dtype": ("golden.safetensors", tensors_of(b"x", dtype="O"), "unknown dtype"),
    "gap": ("golden.safetensors", tensors_of(b"xyz", shape=[1], data_offsets=[2, 3]), "does not lie where"),
    "rest": ("golden.safetensors", tensors_of(b"xyz", shape=[1], data_offsets=[0, 1]), "belong to no tensor"),
    "backwards": ("golden.safetensors", tensors_of(b"xyz", data_offsets=[3, 0]), "does not lie where"),
    "further members": ("golden.safetensors", tensors_of(b"x", loader="pickle"), "no safetensors"),
    "header that is no JSON": ("golden.safetensors", (4).to_bytes(8, "little") + b"{{{{", "no safetensors"),
    "deep header": ("golden.safetensors", len(LONG).to_bytes(8, "little") + LONG, "no safetensors"),
    "no JSON": ("definition.json", b"{'a': 1}", "no JSON"),
    "deep JSON": ("definition.json", LONG, "nested deeper than 100"),
    "deep JSON that ends early": ("definition.json", b"[" * 100_000, "nested deeper than 100"),
    "JSON in another encoding": ("definition.json", '"ü"'.encode("utf-16"), "no JSON"),
    "two documents": ("definition.json", b"{} {}", "no JSON"),
    "text with NUL": ("card.md", b"a\0b", "control characters"),
    "no UTF-8": ("card.md", b"\xff\xfe", "no UTF-8"),
    "a program as text": ("card.md", b"\x7fELF\2\1\1", "a program"),
    "a script as JSON": ("definition.json", b"#!/bin/sh\n", "is a script"),
    "zip bomb": ("model.onnx", zipped("zeros", b"\0" * 10_000_000), "a zip archive"),
}


@pytest.mark.parametrize("name", FILES_THAT_ARE_NONE)
def test_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    path, data, reason = FILES_THAT_ARE_NONE[name]
    packed = release({path: data})
    for door in (lambda: vetted(packed), lambda: write_folder(packed, tmp_path / "r")):
        with pytest.raises(BadReleaseError, match=reason):
            door()
    assert list(tmp_path.iterdir()) == []


def test_brackets_in_strings_nest_nothing() -> None:
    check_contents("definition.json", json.dumps({"a": "[" * 9999, "b\\": '"' + "{" * 999}).encode())
    with pytest.raises(BadReleaseError, match="nested deeper"):
        check_contents("definition.json", json.dumps({"a\\": '"' + "]" * 999}).encode()[:-1] + b"," + DEEP + b"}")


def test_header_that_happens_to_read_as_a_pickle_is_still_one_of_tensors() -> None:
    header = json.dumps({"." * 1300: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    header += b" " * ((ord("X") - len(header)) % 256)
    data = len(header).to_bytes(8, "little") + header  # X: as many characters as the next four bytes say; then STOP
    assert what_is(data).startswith("a pickle")
    check_contents("golden.safetensors", data)


# --- names ---

TRICKS = [
    "../x.json", "a/../x.json", "a/..", "/etc/x.json", "//x.json", "a//b.json", "./x.json", "", "x.json/",
    "C:x.json", "C:\\x.json", "a\\b.json", "x.json:stream.json", "a\0b.json", "a\nb.json", "\x1b[2J.json",
    "a\u2215b.json", "a\u2044b.json", "a\uff0fb.json", "a\u29f8b.json", "\uff0e\uff0e/x.json", "\u2024\u2024/x.json",
    "a\u202eb.json", "a\u200bb.json", "a\ufeff.json", "\u2100.json", "con.json", "NUL.md", "com1.json", "a/Aux.json",
    "lpt9.x.json", "a./x.json", "a /x.json", " a.json", ".../x.json", "a" * 250 + ".json", "a/" * 9 + "x.json",
    "manifest.json", "Config.json", "MANIFEST.json", "x.json\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_path_tricks_are_refused_before_anything_is_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadReleaseError):
        release({path: b"{}"})
    whole = release({"innocent.json": b"{}"})
    forged = whole.manifest_bytes.replace(b'"innocent.json"', json.dumps(path).encode())
    with pytest.raises(BadReleaseError):
        materialise(forged, _Store(whole.blobs), tmp_path / "in" / "r")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    "path", ["model.onnx", "deep/er/x.json", "Übersicht.md", "بطاقة.md", "a b (2).json", "v1.2-x_y.md"]
)
def test_plain_names_of_any_script_are_accepted(path: str) -> None:
    assert check_plain(path) == path


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["a.json", "a.json"], "occurs twice"),
        (["a.json", "A.json"], "differ only in case"),
        (["straße.md", "STRASSE.md"], "differ only in case"),
        (["a.json", "a.json/b.json"], "a file and the folder"),
    ],
)
def test_names_that_collide_are_refused(paths: list[str], reason: str) -> None:
    with pytest.raises(BadReleaseError, match=reason):
        check_together(paths)


# --- manifests ---


def changed(packed: Packed, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(packed.manifest_bytes)
    change(document)
    return json.dumps(document).encode()


MODEL, IMAGE = "application/vnd.cncf.model", "application/vnd.oci.image"
MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "duplicate layer": (lambda d: d["layers"].append(d["layers"][0]), "occurs twice"),
    "same blob, two sizes": (lambda d: d["config"].update(digest=d["layers"][0]["digest"]), "two sizes"),
    "wrong size": (lambda d: d["layers"][0].update(size=1), "are not the 1 the manifest names"),
    "no size": (lambda d: d["layers"][0].update(size=0), "out of bounds"),
    "oversize": (lambda d: d["layers"][0].update(size=2**40), "out of bounds"),
    "oversize together": (lambda d: [layer.update(size=4 * 1024**3) for layer in d["layers"]], "at most"),
    "sha512": (lambda d: d["layers"][0].update(digest="sha512:" + "0" * 128), "only sha256"),
    "digest with a path": (lambda d: d["layers"][0].update(digest="sha256:../../etc/passwd"), "no sha256"),
    "upper-case digest": (lambda d: d["layers"][0].update(digest=d["layers"][0]["digest"].upper()), "only sha256"),
    "missing blob": (lambda d: d["layers"][0].update(digest="sha256:" + "0" * 64), "is missing"),
    "code": (lambda d: d["layers"][0].update(mediaType=f"{MODEL}.code.v1.raw"), "is code"),
    "archived": (lambda d: d["layers"][0].update(mediaType=f"{MODEL}.weight.v1.tar+zstd"), "archived"),
    "image layer": (lambda d: d["layers"][0].update(mediaType=f"{IMAGE}.layer.v1.tar+gzip"), "archived"),
    "unknown type": (lambda d: d["layers"][0].update(mediaType="text/html"), "not one of ModelPack's"),
    "no path": (lambda d: d["layers"][0].update(annotations={}), "plain relative path"),
    "no layer": (lambda d: d.update(layers=[]), "1 to 64 layers"),
    "many layers": (lambda d: d.update(layers=d["layers"] * 20), "1 to 64 layers"),
    "an index": (lambda d: d.update(mediaType=f"{IMAGE}.index.v1+json"), "expected an OCI manifest"),
    "another artifact": (lambda d: d.update(artifactType="application/x"), "expected an OCI manifest"),
    "another config": (lambda d: d["config"].update(mediaType=f"{IMAGE}.config.v1+json"), "expected a config"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_that_does_not_hold_together_is_refused(name: str) -> None:
    change, reason = MANIFESTS[name]
    packed = release()
    with pytest.raises(BadReleaseError, match=reason):
        vet(changed(packed, change), packed.blobs.__getitem__)


def test_release_that_is_all_right_is_accepted() -> None:
    assert vetted(release()).digest == release().digest


# --- any change of a valid release ---


class _Store(dict[str, bytes]):
    def read(self, digest: str) -> bytes:
        return self[digest]


@st.composite
def mutations(draw: st.DrawFn) -> tuple[bytes, dict[str, bytes]]:
    """A valid release, and what someone clever did to it: bytes flipped, cut, repeated, members swapped, resealed."""
    files = dict(FILES)
    for path in draw(st.lists(st.sampled_from(sorted(files)), max_size=2, unique=True)):
        data = bytearray(files[path])
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, max(0, len(data) - 1)))
            piece = draw(
                st.one_of(st.binary(max_size=9), st.sampled_from([varint(2**63), b"\xff" * 9, b"[", b"{", b"PK"]))
            )
            data[at : at + draw(st.integers(0, 9))] = piece
        files[path] = bytes(data) or b"\0"
    packed = release(files)
    document = json.loads(packed.manifest_bytes)
    targets = [document, document["config"], *document["layers"]]
    for _ in range(draw(st.integers(0, 3))):
        target = draw(st.sampled_from(targets))
        key = draw(st.sampled_from([*target, "annotations", "digest", "size", "mediaType", "layers"]))
        target[key] = draw(
            st.one_of(
                st.none(), st.integers(-1, 2**65), st.text(max_size=20), st.sampled_from(TRICKS), st.lists(st.none())
            )
        )
    return json.dumps(document).encode(), packed.blobs


@given(mutations())
@settings(max_examples=150, deadline=None)
def test_nothing_but_a_refusal_comes_of_a_mutated_release(
    tmp_path_factory: pytest.TempPathFactory, mutated: tuple[bytes, dict[str, bytes]]
) -> None:
    manifest_bytes, blobs = mutated
    root = tmp_path_factory.mktemp("any")
    folder = root / "inside" / "r"
    try:
        vet(manifest_bytes, blobs.__getitem__)
        materialise(manifest_bytes, _Store(blobs), folder)
        inside = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert inside == {"manifest.json", "config.json", *(x.path for x in parse_manifest(manifest_bytes).layers)}
    except BadReleaseError:
        assert not folder.exists()
    assert [p for p in root.rglob("*") if p.is_file() and folder not in p.parents] == []


@given(st.binary(max_size=400), st.sampled_from(sorted(FILES)))
@settings(max_examples=150, deadline=None)
def test_nothing_but_a_refusal_comes_of_any_bytes(data: bytes, path: str) -> None:
    with contextlib.suppress(BadReleaseError):
        check_contents(path, data)


def test_bombs_are_judged_in_little_memory(tmp_path: Path) -> None:
    """Files that would grow a thousandfold when parsed, unpacked or allocated: judged under a limit of 64 MB more."""
    bombs = {
        "a.json": b"[" + b"[]," * 4_000_000 + b"0]",
        "b.json": b"[" * 12_000_000,
        "c.json": b'"aa"a' * 6_000_000,
        "d.json": b"[" + b"]" * 12_000_000,
        "e.json": b'"' + b'\\"' * 6_000_000,
        "f.json": "\N{GRINNING FACE}".encode() + b"x" * 30_000_000,
        "a.onnx": graph_of(nodes=field(5, tensor(dims=(2**40,), raw=b"\0" * 9_000_000))),
        "b.onnx": graph_of(nodes=field(1, field(4, b"If") + field(5, field(6, b"\x0a\0" * 4_000_000)))),
        "a.safetensors": tensors_of(b"x" * 9_000_000, shape=[2**50]),
        "b.safetensors": zipped("zeros", b"\0" * 12_000_000) * 50,
        "a.md": b"I" + b"9" * 4_000_000 + b"\n.",
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from landreeve.release.contents import check_contents\n"
        "from landreeve.release.errors import BadReleaseError\n"
        "data = Path(sys.argv[1]).read_bytes()\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 64_000_000, used + 64_000_000))\n"
        "try: check_contents(Path(sys.argv[1]).name, data)\n"
        "except BadReleaseError as error: print(error)\n"
    )
    for name in bombs:
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert bool(done.stdout.strip()) == (name != "a.md"), (name, done.stdout)
