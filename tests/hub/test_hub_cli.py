"""The hub's command line against a running hub: what it writes where, and its exit codes."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from landreeve_hub.commands.client import Hub as Client
from landreeve_hub.commands.rollouts import follow, read_plan
from landreeve_models.definition import load_definition

from tests.models.tensor_releases import image_release, series_release, text_release

UP_S = 30.0


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, as a person would run it."""
    command = [sys.executable, "-m", "landreeve_hub", *arguments]
    env = {"PATH": "/usr/bin:/bin", "NO_COLOR": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a running hub."""
    folder = tmp_path_factory.mktemp("hub") / "state"
    ports = ("http.port=0", "https.port=0", "broker.port=0")
    flags = [part for port in ports for part in ("--set", port)]
    log = (folder.parent / "said.txt").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "landreeve_hub", "serve", "--state", str(folder), *flags], stderr=log
    )
    deadline = time.monotonic() + UP_S
    while run("device", "list", "--state", str(folder)).returncode != 0:
        assert process.poll() is None, (folder.parent / "said.txt").read_text()
        assert time.monotonic() < deadline, (folder.parent / "said.txt").read_text()
    yield folder
    process.terminate()
    process.wait(timeout=20)
    log.close()


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_version_is_answered_alone() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("landreeve-hub ")


def test_no_hub_named_is_a_usage_error() -> None:
    done = run("device", "list")
    assert done.returncode == 2
    assert "--url and --token, or --state" in done.stderr


def test_nobody_there_is_unreachable() -> None:
    done = run("device", "list", "--url", "http://127.0.0.1:9", "--token", "x")
    assert done.returncode == 7
    assert "no hub answers at http://127.0.0.1:9" in done.stderr


def test_wrong_token_is_an_auth_error(state: Path) -> None:
    done = run("device", "list", "--state", str(state), "--token", "wrong")
    assert done.returncode == 5


def test_unknown_thing_is_not_found(state: Path) -> None:
    done = run("rollout", "status", "r-000009", "--state", str(state))
    assert (done.returncode, done.stdout) == (4, "")
    assert "rollout: 'r-000009' is unknown" in done.stderr


def test_waves_are_written_as_people_say_them() -> None:
    assert read_plan("", [], (), ["10%", "tag:pilot", "rest"])["waves"] == [
        {"share": 0.1},
        {"query": "tag:pilot"},
        {"rest": True},
    ]
    with pytest.raises(SystemExit) as stop:
        read_plan("", ["EWR"], (), ["10%"])
    assert stop.value.code == 2


def test_following_a_rollout_outlives_a_hub_that_starts_anew(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    wave = {"committed": 3, "total": 3}
    row = {"id": "r-000001", "version": "v2", "waiting": [], "sentence": "Done.", "waves": [wave]}
    states = iter(["RUNNING", "FINISHED"])
    hub = socket.socket()
    hub.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused

    def answer() -> None:
        for state in states:
            link, _ = hub.accept()
            with link:
                link.recv(65536)
                body = json.dumps({**row, "state": state}).encode()
                link.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def begin(_seconds: float) -> None:  # the first wait of the follower: now the hub is up
        if not server.is_alive():
            hub.listen()
            server.start()

    server = threading.Thread(target=answer, daemon=True)
    monkeypatch.setattr(time, "sleep", begin)
    _, code = follow(Client(f"http://127.0.0.1:{hub.getsockname()[1]}", "t", away_s=60), "r-000001", 0, period_s=0)
    server.join(timeout=10)
    hub.close()
    assert code == 0
    assert "Asking again" in capsys.readouterr().err


def test_people_get_tokens_that_work_without_the_state_folder(state: Path) -> None:
    told(run("user", "add", "mina", "--role", "ml-engineer", "--no-password", "--state", str(state), "-o", "json"))
    token = run("token", "create", "--user", "mina", "-q", "--state", str(state)).stdout.strip()
    url = json.loads((state / "run" / "ports.json").read_text())["url"]
    named = {"LANDREEVE_HUB_URL": url, "LANDREEVE_HUB_TOKEN": token}
    assert told(run("model", "list", "-o", "json", **named)) == []
    refused = run("user", "list", **named)
    assert refused.returncode == 5
    assert "mina is ml-engineer" in refused.stderr
    again = run("user", "add", "mina", "--role", "viewer", "--no-password", "--state", str(state))
    assert again.returncode == 6


def test_token_for_a_site_is_one_line(state: Path) -> None:
    done = run("device", "token", "EWR", "--state", str(state))
    assert done.returncode == 0
    assert done.stdout.startswith("lrt1.")
    assert done.stdout.count("\n") == 1


def test_json_goes_to_output_and_words_to_error(state: Path) -> None:
    done = run("retrain", "list", "--state", str(state), "-o", "json")
    assert told(done) == {"runs": [], "waiting": {}}


def test_fleet_without_plans_says_so(state: Path) -> None:
    assert told(run("plans", "list", "--state", str(state), "-o", "json")) == []
    assert "nothing to show" in run("plans", "list", "--state", str(state)).stderr


def test_folder_that_is_no_release_is_refused_before_it_is_sent(state: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    done = run("model", "push", str(tmp_path), "--state", str(state))
    assert done.returncode == 3
    assert "--repack" in done.stderr


@pytest.mark.parametrize("write", [image_release, text_release, series_release])
def test_release_of_a_tensor_model_is_pushed_and_listed(
    write: Callable[[Path], Path], state: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "release")
    model = load_definition(folder).name
    told(run("model", "push", str(folder), "--state", str(state), "-o", "json"))
    assert model in run("model", "list", "--state", str(state), "-o", "json").stdout


def test_release_leaves_by_tar_and_folder_and_comes_back_the_same(state: Path, tmp_path: Path) -> None:
    at = ("--state", str(state), "-o", "json")
    pushed = told(run("model", "push", str(image_release(tmp_path / "r")), *at))
    shown = told(run("model", "show", f"corner:{pushed['version']}", *at))
    place = f"127.0.0.1:{shown['pull'].partition(':')[2].partition('/')[0]}/corner"
    assert shown["pull"] == f"{place}:{pushed['version']}"
    assert shown["pull_by_digest"] == f"{place}@sha256:{pushed['digest']}"
    for out in ("corner.tar", "folder"):
        pulled = told(run("model", "pull", f"corner:{pushed['version']}", str(tmp_path / out), *at))
        assert pulled == {"digest": pushed["digest"], "place": str(tmp_path / out)}
        assert told(run("model", "push", str(tmp_path / out), *at)) == pushed
    assert run("model", "card", pushed["digest"], "--state", str(state)).stdout.startswith("# corner")
    for wrong, code in (("oci://h/X", 3), (str(tmp_path / "none"), 4), ("oci://127.0.0.1:1/x:v1", 7)):
        assert run("model", "push", wrong, *at).returncode == code


def test_audit_verifies(state: Path) -> None:
    assert told(run("audit", "verify", "--state", str(state), "-o", "json"))["whole"] is True


def test_fresh_code_can_be_had(state: Path) -> None:
    assert len(told(run("code", "--state", str(state), "-o", "json"))["code"]) == 19


def test_setting_is_explained_by_every_source_that_spoke(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("[http]\nport = 7000\n")
    done = run("config", "explain", "http.port", "--state", str(tmp_path), "-o", "json", LANDREEVE_HTTP__PORT="7001")
    found = told(done)
    assert (found["value"], found["source"]) == (7001, "environment")
    assert [layer["value"] for layer in found["layers"]] == [8600, 7000, 7001]


def test_bad_settings_are_named_before_a_hub_starts(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("[http]\nprot = 7000\n")
    done = run("config", "validate", "--state", str(tmp_path))
    assert done.returncode == 3
    assert "hub.toml: unknown setting 'http.prot'; did you mean 'http.port'?" in done.stderr
