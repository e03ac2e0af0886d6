"""The command line of a box: output formats, exit codes, and messages that say what to do."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from landreeve_agent.store.database import Database

from tests.agent.test_intake_spool import line


def cli(state: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "landreeve_agent", "--state", str(state), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "NO_COLOR": "1", **environ}
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "a state"
    assert cli(state, "init", "--site", "Dubai Mall").returncode == 0
    return state


def test_init_makes_a_private_folder_and_keeps_what_is_there(state: Path) -> None:
    token = (state / "tokens" / "api").read_text()
    again = cli(state, "init", "--set", "console.port=9000", "-o", "json")
    assert json.loads(again.stdout)["site"] == "Dubai Mall"
    assert (state / "tokens" / "api").read_text() == token
    assert state.stat().st_mode & 0o777 == 0o700
    assert json.loads(cli(state, "config", "get", "console.port", "-o", "json").stdout) == {"console.port": 9000}


def test_explain_names_every_source_that_spoke(state: Path) -> None:
    done = cli(state, "config", "explain", "site.name", "-o", "json", LANDREEVE_SITE__NAME="Other")
    found = json.loads(done.stdout)
    assert found["value"] == "Other"
    assert [layer["value"] for layer in found["layers"]] == ["this site", "Dubai Mall", "Other"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("status",), 7, "start it: landreeve run"),
        (("code",), 7, "start it: landreeve run"),
        (("config", "get", "consle.port"), 4, "did you mean 'console.port'?"),
        (("init", "--set", "console.port=high"), 2, "console.port"),
        (("init", "--set", "console.port"), 2, "KEY=VALUE"),
        (("model", "add", "/nowhere"), 2, "cannot be read"),
        (("join", "rubbish"), 1, "token"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_refusals_say_what_to_do(state: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = cli(state, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_validate_finds_a_bad_value(state: Path) -> None:
    assert cli(state, "config", "validate").returncode == 0
    (state / "agent.toml").write_text("[serving]\nport = 70000\n")
    done = cli(state, "config", "validate")
    assert done.returncode == 3
    assert "serving.port" in done.stderr
    assert str(state / "agent.toml") in done.stderr


def test_doctor_lists_each_finding_with_its_fix(state: Path) -> None:
    (state / "definitions" / "m.json").write_text("{")
    done = cli(state, "doctor", "-o", "json")
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 3
    assert rows["model m"]["state"] == "fail"
    assert rows["agent"]["fix"] == "landreeve run"
    assert rows["settings"]["state"] == "ok"


def test_a_model_can_be_added_before_the_first_start(state: Path, tmp_path: Path) -> None:
    definition = tmp_path / "model" / "definition.json"
    definition.parent.mkdir()
    columns = [{"name": "x", "kind": "number"}]
    definition.write_text(json.dumps({"name": "m", "purpose": "", "label": "y", "columns": columns}))
    done = cli(state, "model", "add", str(definition.parent), "-o", "json")
    assert json.loads(done.stdout) == {"name": "m", "columns": 1, "label": "y"}
    assert (state / "definitions" / "m.json").exists()


def test_tokens_are_shown_for_scripts(state: Path) -> None:
    shown = cli(state, "token", "show", "app").stdout.strip()
    assert shown == (state / "tokens" / "app").read_text()
    assert shown != cli(state, "token", "show", "api").stdout.strip()


def test_the_version_is_printed_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "landreeve_agent", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("landreeve 0.")


def test_decrypting_reads_what_a_killed_worker_left_sealed_in_the_spool(state: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlcipher3")
    from landreeve.sealed.lines import LineSealer
    from landreeve.sealed.vault import Vault

    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    Database(state / "agent.db").close()
    assert cli(state, "store", "encrypt", "--key", f"file:{key}").returncode == 0
    vault = Vault.open(state / "keys" / "vault.json", f"file:{key}", state)
    (state / "spool").mkdir(exist_ok=True)
    sealed = LineSealer(vault.keys("spool")).seal("1-0.jsonl", line("a") + line("b"))
    (state / "spool" / "1-0.jsonl").write_bytes(sealed)
    done = cli(state, "store", "decrypt")
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(state / "agent.db")) as plain:
        assert plain.execute("SELECT id FROM samples ORDER BY id").fetchall() == [("a",), ("b",)]
