"""Wheels in a release of the agent: what is refused, and that no model may hold one."""

import contextlib
import io
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.layout import pack
from landreeve.release.manifest import BadReleaseError, Gates, Lineage, ReleaseConfig, Signature
from landreeve.release.vet import vet
from landreeve.release.wheels import MAX_FILES, check_wheel

NAME = "landreeve-9.9.9-py3-none-any.whl"
OWN = "landreeve-9.9.9.dist-info"
GOOD = {f"{OWN}/METADATA": b"Name: landreeve\n", f"{OWN}/WHEEL": b"Wheel-Version: 1.0\n", f"{OWN}/RECORD": b""}


def wheel(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def release(component: str, files: dict[str, bytes]) -> object:
    config = ReleaseConfig(
        model="landreeve-agent",
        family="agent",
        component=component,
        created="2026-11-28T00:00:00Z",
        signature=Signature(inputs=(), output=""),
        gates=Gates(),
        lineage=Lineage(),
    )
    packed = pack(files, config)
    return vet(packed.manifest_bytes, packed.blobs.__getitem__)


def test_release_of_the_agent_holds_wheels_and_a_model_none() -> None:
    assert release("agent", {NAME: wheel(GOOD)})
    with pytest.raises(BadReleaseError, match="a model holds no code"):
        release("model", {NAME: wheel(GOOD)})


@pytest.mark.parametrize("name", ["system.img", "system.raucb"])
def test_image_is_held_by_a_release_of_firmware_alone_and_wheels_are_not(name: str) -> None:
    pickle = b"\x80\x04]."  # nobody here opens an image, whatever is in it
    assert release("firmware", {name: pickle})
    for component in ("model", "agent"):
        with pytest.raises(BadReleaseError, match=f"{name}: a {component} holds no code"):
            release(component, {name: pickle})
    with pytest.raises(BadReleaseError, match="a firmware holds no code"):
        release("firmware", {NAME: wheel(GOOD)})


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "no zip": (lambda: b"PK\x03\x04 and nothing more", "no wheel"),
    "another project's": (lambda: wheel({"other-1.dist-info/METADATA": b""}), "no wheel of landreeve-9.9.9"),
    "upwards": (lambda: wheel({**GOOD, "../evil.py": b""}), "outside the environment"),
    "absolute": (lambda: wheel({**GOOD, "/etc/evil.py": b""}), "outside the environment"),
    "a drive": (lambda: wheel({**GOOD, "c:/evil.py": b""}), "outside the environment"),
    "a backslash": (lambda: wheel({**GOOD, "a\\..\\evil.py": b""}), "outside the environment"),
    "nowhere": (lambda: wheel({**GOOD, ".": b""}), "outside the environment"),
    "scripts": (lambda: wheel({**GOOD, "landreeve-9.9.9.data/scripts/sudo": b""}), "beyond the package"),
    "a path file": (lambda: wheel({**GOOD, "evil.pth": b"import os"}), "every start of the interpreter"),
    "a bomb": (lambda: wheel({**GOOD, "zeros": bytes(50_000_000)}), "would unpack to"),
    "too many": (lambda: wheel({**GOOD, **{f"f{n}": b"" for n in range(MAX_FILES)}}), "at most"),
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_wheel_is_refused_with_its_reason(case: str) -> None:
    make, why = BAD[case]
    with pytest.raises(BadReleaseError, match=why):
        check_wheel(NAME, make())


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_wheel_is_a_wheel_or_refused(noise: bytes, at: int) -> None:
    data = wheel(GOOD)
    with contextlib.suppress(BadReleaseError):  # nothing else ever comes out
        check_wheel(NAME, data[:at] + noise + data[at:])
