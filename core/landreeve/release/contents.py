"""What may stand in a file of a release, by its suffix: ``.onnx``, ``.safetensors``, ``.json``, ``.md``.

Only bytes are looked at; nothing is unpickled, unpacked, or loaded. A file that is something else than its name says
is refused with what it is.
"""

import codecs
import pickletools
import re
from pathlib import PurePosixPath

import msgspec

from landreeve.release import onnx_wire
from landreeve.release.errors import BadReleaseError
from landreeve.release.manifest import IMAGE_SUFFIXES
from landreeve.release.wheels import check_wheel

MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_JSON_DEPTH = 100
MAX_JSON_VALUES = 2_000_000  # each becomes an object of some 60 bytes where the file is read
MAX_PICKLE_OPCODES = 100_000
_SIGNS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x89HDF\r\n", "HDF5 (Keras)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "GGUF"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
    (b"%PDF", "a PDF"),
)
_TAR_SIGN_AT = 257
# Bits of an element by safetensors' dtype; https://github.com/huggingface/safetensors, "Format".
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def check_contents(path: str, data: bytes) -> None:
    """Return when the file is what its name says and nothing in it forbids using it; else `BadReleaseError`."""
    suffix = PurePosixPath(path).suffix
    if suffix == ".whl":  # that no model holds one is the matter of who knows what the release is of
        check_wheel(path, data)
        return
    if suffix in IMAGE_SUFFIXES:
        return
    if suffix != ".md" and not _has_tensor_header(suffix, data) and (kind := what_is(data)):
        raise BadReleaseError(f"{path}: is {kind}, not {suffix.removeprefix('.')}; accepted are ONNX and safetensors")
    match suffix:
        case ".onnx":
            onnx_wire.check_graph(data, path)
        case ".safetensors":
            _check_safetensors(path, data)
        case ".json":
            _check_json(path, data)
        case ".md":
            _check_text(path, data)
        case _:
            raise BadReleaseError(f"{path}: format not accepted; accepted are .onnx, .safetensors, .json and .md")


def what_is(data: bytes) -> str:
    """What a file is when it is something known that no release may hold; empty when it is not.

    A pickle is recognised by walking its instructions, which runs none of them.

    >>> what_is(b"\\x80\\x04K\\x01.")
    'a pickle (it can run code when loaded)'
    """
    for sign, kind in _SIGNS:
        if data.startswith(sign):
            return _zip_kind(data) if sign.startswith(b"PK") else kind
    if data[_TAR_SIGN_AT : _TAR_SIGN_AT + 5] == b"ustar":
        return "a tar archive"
    return "a pickle (it can run code when loaded)" if is_pickle(data) else ""


def is_pickle(data: bytes) -> bool:
    """Whether the bytes begin with a whole pickle of any protocol that says more than one plain value of text."""
    if not data or not (data[0] == 0x80 or data[:1] in b"(cI}]lLdFSVUTX\x8c\x8a\x88\x89NKMJG\x95"):
        return False
    seen = 0
    try:
        for opcode, _, _ in pickletools.genops(data):
            seen += 1
            if opcode.name == "STOP":
                return seen > 1
            if seen > MAX_PICKLE_OPCODES:
                return True
    except Exception:  # noqa: BLE001  its readers raise whatever the bytes lead them to: this is no whole pickle
        # Protocol 2 and later say so in their first two bytes; a pickle that is cut off is one all the same.
        return data[0] == 0x80 and len(data) > 1 and 2 <= data[1] <= 5 and seen > 1
    return False


def _zip_kind(data: bytes) -> str:
    """What the archive seems to be, by the names that stand in it; it is not opened."""
    if b".pkl" in data or b".pickle" in data:
        return "a zip archive holding a pickle, as PyTorch writes it (it can run code when loaded)"
    return "a NumPy archive" if b".npy" in data else "a zip archive"


def _has_tensor_header(suffix: str, data: bytes) -> bool:
    """Whether it begins as safetensors do. Such a file is judged as one alone: the length it begins with and the names
    behind it may happen to read as the instructions of a pickle."""
    return suffix == ".safetensors" and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= MAX_HEADER_BYTES


def _check_json(path: str, data: bytes) -> None:
    if len(data) > MAX_JSON_BYTES:
        raise BadReleaseError(f"{path}: {len(data)} bytes of JSON, at most {MAX_JSON_BYTES}")
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise BadReleaseError(f"{path}: more than {MAX_JSON_VALUES} values")
    try:
        _check_utf8(data)
        msgspec.json.decode(data, type=msgspec.Raw)  # validates and builds nothing
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReleaseError(f"{path}: no JSON: {str(error)[:200]}") from error
    except RecursionError:
        raise BadReleaseError(f"{path}: JSON nested deeper than {MAX_JSON_DEPTH}") from None
    if depth_of(data) > MAX_JSON_DEPTH:
        raise BadReleaseError(f"{path}: JSON nested deeper than {MAX_JSON_DEPTH}")


def _check_utf8(data: bytes) -> None:
    """`UnicodeDecodeError` unless it is; in pieces, since a text can take four times the bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    for at in range(0, len(view), _PIECE_BYTES):
        decoder.decode(view[at : at + _PIECE_BYTES])
    decoder.decode(b"", final=True)


def depth_of(data: bytes) -> int:
    """How deep the brackets of valid JSON nest, in constant memory.

    >>> depth_of(b'[{"[[[": [1]}, {}]')
    3
    """
    depth = deepest = 0
    for found in _BRACKETS_AND_STRINGS.finditer(data):
        sign = data[found.start()]
        if sign in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in b"]}":
            depth -= 1
    return deepest


_PIECE_BYTES = 1024 * 1024
_BRACKETS_AND_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


def _check_text(path: str, data: bytes) -> None:
    if len(data) > MAX_TEXT_BYTES:
        raise BadReleaseError(f"{path}: {len(data)} bytes of text, at most {MAX_TEXT_BYTES}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadReleaseError(f"{path}: {what_is(data) or 'no UTF-8 text'}") from error
    if any(character < " " and character not in "\n\r\t" for character in text):
        raise BadReleaseError(f"{path}: holds control characters: {what_is(data) or 'no plain text'}")
    if is_pickle(data):
        raise BadReleaseError(f"{path}: is a pickle written as text")


def _check_safetensors(path: str, data: bytes) -> None:
    """The header describes the rest without gap, overlap or end beyond the file, as the format demands."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise BadReleaseError(f"{path}: no safetensors: its header of {length} bytes does not fit")
    header = data[8 : 8 + length]
    try:
        document = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = document.pop("__metadata__", None)
        if metadata is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in document.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadReleaseError(f"{path}: no safetensors: {str(error)[:200]}") from error
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        first, last = tensor.data_offsets
        if first != end or last < first or last - first != _bytes_of(path, name, tensor):
            raise BadReleaseError(
                f"{path}: tensor {name[:60]!r} does not lie where its shape says, or overlaps another"
            )
        end = last
    if end != len(data) - 8 - length:
        raise BadReleaseError(f"{path}: {len(data) - 8 - length - end} bytes belong to no tensor")


def _bytes_of(path: str, name: str, tensor: _Tensor) -> int:
    if tensor.dtype not in _BITS or len(tensor.shape) > onnx_wire.MAX_RANK or any(n < 0 for n in tensor.shape):
        raise BadReleaseError(f"{path}: tensor {name[:60]!r} has the unknown dtype {tensor.dtype[:20]!r} or no shape")
    elements = 1
    for count in tensor.shape:
        elements *= count  # unbounded integers: nothing overflows, and 16 of 64 bits are few digits
    return -(-elements * _BITS[tensor.dtype] // 8)
