"""Where a sealed site may put plain bytes: in memory, in a folder of its own, or nowhere."""

import os
from pathlib import Path

import msgspec
import pytest
from landreeve_agent import sealing
from landreeve_agent.commands.checks import examine
from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.sealing import file_system, memory_folder, swap_on

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
/dev/sda2 /dev/shm/disk ext4 rw 0 0
tmpfs /mnt/with\\040space tmpfs rw 0 0
tmpfs /over tmpfs rw 0 0
/dev/sda3 /over xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/dev/shm/x", "tmpfs"), ("/dev/shm/disk/x", "ext4"), ("/dev/shmx", "ext4"), ("/mnt/with space/x", "tmpfs"),
     ("/over/x", "xfs")],
)  # fmt: skip
def test_the_innermost_and_latest_mount_decides(tmp_path: Path, folder: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert file_system(Path(folder), mounts) == kind
    assert file_system(Path(folder), tmp_path / "none") == ""


def test_swap_in_memory_is_none(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename Type Size Used Priority\n/dev/zram0 partition 1 0 5\n/dev/sda5 partition 1 0 -2\n")
    assert swap_on(swaps) == ("/dev/sda5",)
    assert swap_on(tmp_path / "none") == ()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StateFolder, AgentSettings, Path]:
    """A site whose memory is said to be a folder of this test."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(sealing, "MEMORY", memory)
    monkeypatch.setattr(sealing, "IN_MEMORY", (file_system(memory),))
    state = StateFolder(tmp_path / "state")
    state.prepare()
    return state, AgentSettings(), memory


def test_what_a_killed_agent_left_in_memory_is_gone_at_the_next_start(
    site: tuple[StateFolder, AgentSettings, Path],
) -> None:
    state, settings, memory = site
    made = memory_folder(state, settings)
    assert made is not None
    assert made.parent == memory
    assert made.stat().st_mode & 0o777 == 0o700
    (made / "tmp1").mkdir()
    (made / "tmp1" / "model.onnx").write_bytes(b"weights")
    assert memory_folder(state, settings) == made
    assert list(made.iterdir()) == []


def test_a_folder_that_somebody_else_laid_there_is_not_used(
    site: tuple[StateFolder, AgentSettings, Path], tmp_path: Path
) -> None:
    state, settings, _ = site
    made = memory_folder(state, settings)
    assert made is not None
    made.rmdir()
    (tmp_path / "trap").mkdir()
    made.symlink_to(tmp_path / "trap")
    assert memory_folder(state, settings) is None
    assert list((tmp_path / "trap").iterdir()) == []


def test_a_scratch_folder_on_a_disk_is_refused(site: tuple[StateFolder, AgentSettings, Path], tmp_path: Path) -> None:
    state, settings, _ = site
    scratch = msgspec.structs.replace(settings.at_rest, scratch=str(tmp_path / "scratch"))
    settings = msgspec.structs.replace(settings, at_rest=scratch)
    assert memory_folder(state, settings) == tmp_path / "scratch" / "raw"
    sealing.IN_MEMORY = ("tmpfs-of-another-kind",)  # the fixture puts it back
    assert memory_folder(state, settings) is None


def test_the_doctor_says_of_a_sealed_site_where_its_plain_data_may_get(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.prepare()
    assert "at rest" not in {check.check for check in examine(state, {})}
    state.vault.parent.mkdir(exist_ok=True)
    state.vault.write_bytes(b"{}")
    (found,) = [check for check in examine(state, dict(os.environ)) if check.check == "at rest"]
    assert found.fact.startswith("sealed")
    assert (found.state == "ok") == (not swap_on() and file_system(sealing.MEMORY) in sealing.IN_MEMORY)
