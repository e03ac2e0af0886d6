"""The whole of on-site training with real processes: a store in, a candidate or the gate's reason out."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import materialise
from landreeve.release.manifest import Column, parse_manifest
from landreeve.wire.codec import decode
from landreeve.wire.messages import Candidate, Event, Fact
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp
from landreeve_agent.training.job import TrainRequest
from landreeve_agent.training.manager import TrainingRefusedError, Trainings
from landreeve_models.definition import Definition

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROWS = 3000

DEFINITION = Definition(
    name="toy",
    purpose="Whether a point lies right of the line",
    label="right",
    columns=(
        Column(name="a", kind="number"),
        Column(name="b", kind="number", required=False),
        Column(name="side", kind="category"),
    ),
    recipes={"mlp": {"hidden": [8], "epochs": 12, "batch": 64, "checkpoint_steps": 20}},
)
BOTH = msgspec.structs.replace(DEFINITION, recipes=DEFINITION.recipes | {"boosting": {"max_iter": 20}})


class Site:
    """A store with labelled rows, and trainings over it."""

    def __init__(self, root: Path, definition: Definition = DEFINITION) -> None:
        self.root = root
        self.definition = definition
        self.database = Database(root / "agent.db")
        self.outbox = Outbox(self.database)
        self.blobs = BlobStore(root / "blobs")
        self.trainings = self.start()

    def start(self) -> Trainings:
        return Trainings(
            self.database,
            self.outbox,
            {self.definition.name: self.definition},
            self.blobs,
            folder=self.root / "training",
            models=self.root / "models",
            site="north",
            clock=lambda: NOW,
        )

    async def fill(self, *, signal_strength: float, side: str = "right") -> None:
        draw = np.random.default_rng(3)
        a, b = draw.normal(size=ROWS), draw.normal(size=ROWS)
        sides = np.where(draw.random(ROWS) < 0.5, "left", side)
        chance = 1 / (1 + np.exp(-signal_strength * (a + (sides == side))))
        label = (draw.random(ROWS) < chance).astype(float)
        moments = [stamp(START + timedelta(minutes=20 * i)) for i in range(ROWS)]
        rows = [
            {"a": float(x), "b": None if i % 7 == 0 else float(y)} for i, (x, y) in enumerate(zip(a, b, strict=True))
        ]
        samples = [
            ("toy", f"r{i}", moments[i], msgspec.json.encode(rows[i] | {"side": str(sides[i])}).decode(), moments[i])
            for i in range(ROWS)
        ]
        labels = [("toy", f"r{i}", label[i], moments[i], moments[i]) for i in range(ROWS)]

        def put(db: object) -> None:
            db.conn.executemany(  # type: ignore[attr-defined]
                'INSERT INTO samples (model, id, at, "row", captured) VALUES (?, ?, ?, ?, ?)', samples
            )
            db.conn.executemany("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", labels)  # type: ignore[attr-defined]

        await self.database.write(put)

    async def ask(self, request_id: str = "") -> str:
        last = START + timedelta(minutes=20 * ROWS)
        request = TrainRequest(model="toy", first=stamp(START), last=stamp(last), reason="test", request_id=request_id)
        return await self.trainings.request(request)

    async def facts(self) -> list[object]:
        pending = await self.outbox.pending(0, 1000)
        return [decode(item.body, Fact).body for item in pending]

    async def candidates(self) -> list[Candidate]:
        return [body for body in await self.facts() if isinstance(body, Candidate)]

    async def events(self) -> list[str]:
        return [body.name for body in await self.facts() if isinstance(body, Event)]

    def install(self, manifest: str) -> None:
        """As the update machine would: the release's folder and the pointer to it."""
        folder = self.root / "models" / "toy" / manifest[:12]
        materialise(self.blobs.read(manifest), self.blobs, folder)
        pointer = {"release": manifest, "version": "1", "plan": {}, "previous": ""}
        (folder.parent / "active.json").write_bytes(msgspec.json.encode(pointer))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    made.database.close()


async def test_training_ends_with_a_complete_candidate_in_the_blob_store(site: Site) -> None:
    site.definition = BOTH
    site.trainings = site.start()
    await site.fill(signal_strength=2.0)
    run = await site.ask("q-1")
    assert await site.trainings.step()
    (candidate,) = await site.candidates()
    assert (candidate.run, candidate.request, candidate.reason) == (run, "q-1", "test")
    manifest = parse_manifest(site.blobs.read(candidate.manifest))
    assert set(candidate.metrics["recipes"]) == {"boosting", "mlp"}
    assert candidate.manifest_bytes == len(site.blobs.read(candidate.manifest))
    assert all(site.blobs.has(blob.sha256) for blob in manifest.blobs())
    assert {layer.path for layer in manifest.layers} == {
        "model.onnx", "features.json", "definition.json", "baseline.json", "calibration.safetensors",
        "golden.safetensors", "card.md", "bom.json", "landreeve.json",
    }  # fmt: skip
    assert await site.events() == ["training.started", "training.finished"]
    assert not (site.root / "training" / run).exists(), "raw rows must not outlive the run"


async def test_labels_without_signal_give_no_candidate_but_a_reason(site: Site) -> None:
    await site.fill(signal_strength=0.0)
    await site.ask()
    await site.trainings.step()
    assert await site.candidates() == []
    assert await site.events() == ["training.started", "training.rejected"]


async def test_challenger_no_better_than_the_champion_is_rejected(site: Site) -> None:
    await site.fill(signal_strength=2.0)
    await site.ask()
    await site.trainings.step()
    (candidate,) = await site.candidates()
    site.install(candidate.manifest)
    await site.ask()
    await site.trainings.step()
    assert len(await site.candidates()) == 1
    assert (await site.events())[-1] == "training.rejected"


async def test_same_request_twice_is_one_run(site: Site) -> None:
    await site.fill(signal_strength=2.0)
    assert await site.ask("q-7") == await site.ask("q-7")
    assert await site.trainings.step()
    assert not await site.trainings.step()


async def test_unknown_model_and_empty_range_are_refused_by_field(site: Site) -> None:
    with pytest.raises(TrainingRefusedError, match=r"model: .*known: toy"):
        await site.trainings.request(TrainRequest(model="x", first=stamp(START), last=stamp(NOW)))
    with pytest.raises(TrainingRefusedError, match=r"first: .* is not before"):
        await site.trainings.request(TrainRequest(model="toy", first=stamp(NOW), last=stamp(START)))
    with pytest.raises(TrainingRefusedError, match="no time"):
        await site.trainings.request(TrainRequest(model="toy", first="yesterday", last=stamp(START)))


async def test_trainer_killed_again_and_again_gives_the_very_same_candidate(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    quiet = Site(tmp_path_factory.mktemp("quiet"))
    for each in (site, quiet):
        await each.fill(signal_strength=2.0)
    run = await site.ask("same")
    killed = await _step_with_kills(site, kills=2)
    assert killed == 2
    await _ask_as(quiet, run, "same")
    await quiet.trainings.step()
    (a,), (b,) = await site.candidates(), await quiet.candidates()
    quiet.database.close()
    assert a.manifest == b.manifest
    assert await site.events() == ["training.started", "training.finished"]


async def test_trainer_that_always_dies_fails_after_a_bounded_number_of_tries(site: Site) -> None:
    await site.fill(signal_strength=2.0)
    await site.ask()
    await _step_with_kills(site, kills=99)
    assert (await site.events())[-1] == "training.failed"
    assert not await site.trainings.step()


async def test_cancelled_supervisor_ends_its_trainer_and_goes_on_after_restart(site: Site) -> None:
    await site.fill(signal_strength=2.0)
    await site.ask()
    room = asyncio.create_task(site.trainings.run())
    pid = await _trainer_pid(site, room)
    room.cancel()
    await asyncio.gather(room, return_exceptions=True)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    site.trainings = site.start()
    assert await site.trainings.step()
    assert len(await site.candidates()) == 1


async def test_rows_outside_the_range_and_without_label_are_not_used(site: Site) -> None:
    await site.fill(signal_strength=2.0)
    first, last = START + timedelta(minutes=20 * 500), START + timedelta(minutes=20 * 2500)
    await site.database.write(lambda db: db.conn.execute("DELETE FROM labels WHERE id IN ('r600', 'r601')"))
    await site.trainings.request(TrainRequest(model="toy", first=stamp(first), last=stamp(last)))
    await site.trainings.step()
    (candidate,) = await site.candidates()
    assert candidate.metrics["rows"] == 2000 - 2


async def _ask_as(site: Site, run: str, request_id: str) -> None:
    """A run of a given id, as if it had been asked for at the same moment."""
    await site.ask(request_id)
    await site.database.write(lambda db: db.conn.execute("UPDATE runs SET id = ?", (run,)))


async def _trainer_pid(site: Site, task: "asyncio.Task[object]") -> int:
    while site.trainings.pid is None:
        assert not task.done()
        await asyncio.sleep(0.005)
    return site.trainings.pid


async def _step_with_kills(site: Site, kills: int) -> int:
    """Work until no run is open; kill -9 the trainer up to that often once it has a checkpoint."""
    done = 0
    while True:
        task = asyncio.create_task(site.trainings.step())
        while not task.done():
            saved = list((site.root / "training").glob("*/mlp.checkpoint.safetensors"))
            if done < kills and saved and site.trainings.pid is not None:
                os.kill(site.trainings.pid, signal.SIGKILL)
                done += 1
                saved[0].touch()
                await task
            await asyncio.sleep(0.005)
        if not await task:
            return done
