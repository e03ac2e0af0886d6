"""What joining, renewing and throwing out take: a real hub process, and both brokers with a device that speaks.

python tests/bench/bench_identity.py [--rounds N]
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_hub.broker.child import Kind, find_program  # noqa: E402
from landreeve_hub.errors import BrokerError  # noqa: E402

from tests.integration.fleet_yard import open_yard  # noqa: E402
from tests.integration.hub_site import Box, HubProcess, until  # noqa: E402

CUT_BAR_S = 5.0
JOIN_BAR_S = 5.0
RENEW_BAR_S = 5.0
Row = dict[str, Any]


def row(what: str, values: list[float], bar: float) -> Row:
    worst = max(values)
    return {
        "what": what,
        "value": round(statistics.median(values), 3),
        "worst": round(worst, 3),
        "unit": "s",
        "bar": bar,
        "holds": worst <= bar,
    }


async def joins_and_renewals(folder: Path, rounds: int) -> list[Row]:
    """From the token in hand to the identity on disk, and from asking to the new pair in use."""
    hub = HubProcess(folder / "hub")
    await asyncio.to_thread(hub.start)
    joined, renewed, out = [], [], []
    try:
        for number in range(rounds):
            token = await asyncio.to_thread(hub.token, f"site-{number}")
            box = Box(folder / f"site-{number}")
            began = time.perf_counter()
            await asyncio.to_thread(box.join, token)
            joined.append(time.perf_counter() - began)
            await box.start()
            await until(lambda box=box: box.connected)
            renewer = box.renewer
            began = time.perf_counter()
            await renewer._renew(renewer.keyring.described(), renewer.clock())
            renewed.append(time.perf_counter() - began)
            await until(lambda box=box: box.connected)
            answer = await asyncio.to_thread(hub.post, f"devices/{box.device}/revoke")
            out.append(float(answer["cut_s"]))
            await box.stop()
    finally:
        await asyncio.to_thread(hub.stop)
    return [
        row("join: token to identity on disk", joined, JOIN_BAR_S),
        row("renew: asked, proven by a connection, in use", renewed, RENEW_BAR_S),
        row("revoke over the API: session cut", out, CUT_BAR_S),
    ]


async def cut(folder: Path, kind: Kind, rounds: int) -> Row:
    """From the order to the device's own notice that it is disconnected, while it states a fact every 50 ms."""
    took = []
    async with open_yard(folder, kind) as yard:
        for number in range(rounds):
            device = await yard.enrol(f"site-{number}")
            device.start()
            await until(lambda device=device: device.connected and device.sent > 10)
            began = time.monotonic()
            await yard.identities.revoke(device.name, by="bench", reason="")
            await until(lambda device=device: bool(device.dropped))
            took.append(device.dropped[0] - began)
            device.stop()
    return row(f"revoke on {kind.value}: device cut", took, CUT_BAR_S)


async def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        rows = await joins_and_renewals(Path(folder), rounds)
        for kind in Kind:
            try:
                find_program(kind.value)
            except BrokerError:
                continue
            place = Path(folder) / kind.value
            place.mkdir()
            rows.append(await cut(place, kind, rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rows = asyncio.run(measure(parser.parse_args().rounds))
    for one in rows:
        holds = "holds" if one["holds"] else "FAILS"
        figures = f"median {one['value']:7.3f} s  worst {one['worst']:7.3f} s  bar {one['bar']} s"
        print(f"{one['what']:<48} {figures}  {holds}")
    target = ROOT / "build" / "bench" / "identity.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
