"""Every GPU and NPU of a box, from the kernel's files alone: cheap enough to look again every few seconds."""

from pathlib import Path

from landreeve_agent.hardware.gpus import read_gpus
from landreeve_agent.hardware.inventory import Accelerator
from landreeve_agent.hardware.libraries import Libraries
from landreeve_agent.hardware.npus import read_npus
from landreeve_agent.hardware.plugged import read_plugged


def read_accelerators(root: Path) -> tuple[Accelerator, ...]:
    """The accelerators of the tree under ``root``, GPUs first."""
    libraries = Libraries(root)
    return (*read_gpus(root, libraries), *read_npus(root, libraries), *read_plugged(root, libraries))
