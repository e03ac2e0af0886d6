"""How warm the box is and whether it is slowed down, from thermal zones, throttle counts and voltage alarms.

Sources: Linux ``Documentation/driver-api/thermal/sysfs-api.rst`` (millidegrees), ``Documentation/ABI/testing/
sysfs-devices-system-cpu`` (thermal_throttle), ``Documentation/hwmon/raspberrypi-hwmon.rst`` (in0_lcrit_alarm).
"""

import math
from collections.abc import Iterator
from pathlib import Path

from landreeve_agent.hardware.files import children, read_number, read_text
from landreeve_agent.hardware.inventory import Heat


def read_heat(root: Path) -> Heat:
    """Temperatures and throttling of the tree under ``root``; zones that cannot be read are left out."""
    counters = ("core_throttle_count", "package_throttle_count")
    folders = children(root / "sys/devices/system/cpu", "cpu[0-9]*")
    counts = [read_number(folder / "thermal_throttle" / name) for folder in folders for name in counters]
    return Heat(celsius=_zones(root), throttle_count=sum(counts), problem="; ".join(_problems(root)))


def _zones(root: Path) -> dict[str, float]:
    """The warmest reading of each type of zone."""
    found: dict[str, float] = {}
    for zone in children(root / "sys/class/thermal", "thermal_zone[0-9]*"):
        name, text = read_text(zone / "type"), read_text(zone / "temp")
        if name and text.lstrip("-").isdigit():
            found[name] = max(found.get(name, -math.inf), int(text) / 1000)
    return found


def _problems(root: Path) -> Iterator[str]:
    for device in children(root / "sys/class/thermal", "cooling_device[0-9]*"):
        kind, state = read_text(device / "type"), read_number(device / "cur_state")
        # Fans are cooling devices as well, and a running fan slows nothing down.
        if state and (kind == "Processor" or kind.startswith(("cpufreq", "cpu-", "thermal-cpufreq"))):
            yield f"the processor is slowed down against heat ({kind}: step {state})"
            break
    for monitor in children(root / "sys/class/hwmon", "hwmon[0-9]*"):
        if read_text(monitor / "name") == "rpi_volt" and read_number(monitor / "in0_lcrit_alarm"):
            yield "the power supply is too weak (under-voltage), which slows the processor down"
