"""``landreeve plans`` tells how models run here, from disk."""

import json
import shutil
from pathlib import Path

import pytest
from landreeve_agent.commands.cli import app
from landreeve_agent.serving.control import Plan
from landreeve_agent.tuning.cache import Kept, write_kept
from landreeve_agent.tuning.report import PreflightReport, Trial
from landreeve_agent.update.pointer import release_folder, write_pointer
from landreeve_agent.update.standing import Installed
from typer.testing import CliRunner

RELEASE = "ab" * 32


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with one model that went through its preflight."""
    folder = release_folder(tmp_path / "models", "delay", RELEASE)
    folder.mkdir(parents=True)
    plan = Plan("openvino", precision="bf16")
    trials = (
        Trial(what=Plan().name, plan=Plan(), accepted=True, why="", p50_us=100.0, ratio=1.0),
        Trial(what=plan.name, plan=plan, accepted=True, why="", p50_us=25.0, ratio=0.25, metric=0.4, stage="won"),
    )
    report = PreflightReport(
        plan=plan, trials=trials, metric="log_loss", metric_value=0.4, golden_rows=10, max_difference=0.0, rss_mb=70.0,
        seconds=1.0, fingerprint="f", sentence="10 golden rows reproduced", box_class="b",
    )  # fmt: skip
    write_kept(folder, Kept(report=report, graph="", answers=()))
    write_pointer(tmp_path / "models", "delay", Installed(RELEASE, "1.0.0", "{}"), None)
    return tmp_path


def test_every_model_has_its_line(state: Path) -> None:
    done = CliRunner().invoke(app, ["--state", str(state), "plans", "-o", "json"])
    assert done.exit_code == 0, done.output
    (line,) = json.loads(done.stdout)
    assert (line["model"], line["plan"], line["times_faster"]) == ("delay", "openvino cpu bf16 1 thread", 4.0)


def test_one_model_has_its_whole_report(state: Path) -> None:
    done = CliRunner().invoke(app, ["--state", str(state), "plans", "delay"])
    assert done.stdout.startswith("# openvino cpu bf16 1 thread\n")
    assert "4.0 times as fast as the default plan" in done.stdout


def test_a_model_without_a_plan_is_named(state: Path) -> None:
    shutil.rmtree(release_folder(state / "models", "delay", RELEASE))
    done = CliRunner().invoke(app, ["--state", str(state), "plans", "delay"])
    assert done.exit_code != 0
    assert "kept are those of: none" in done.output
