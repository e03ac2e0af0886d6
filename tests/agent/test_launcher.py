"""The launcher with real processes: what it starts, what it counts, when it goes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve_agent.launch import slots as book
from landreeve_agent.launch import sockets
from landreeve_agent.launch.slots import MAX_STARTS, RESTART_CODE, Slot, Slots

NEW = "b" * 64
OTHER = "c" * 64


# --- the file


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_the_box_starts(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slots.json"
        path.write_bytes(data)
        _, slot = book.to_start(book.read(path))
    assert isinstance(slot.python, str)


def test_what_a_later_version_wrote_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    path.write_text('{"good": {"release": "", "python": "/p"}, "of_tomorrow": [1]}')
    book.write(path, book.offered(book.read(path), Slot(NEW, "/n"), 5.0))
    again = book.read(path)
    assert again.other == {"of_tomorrow": [1]}
    assert again.trying == Slot(NEW, "/n")


@given(st.lists(st.sampled_from(["start", "offer", "confirm", "leave"]), max_size=30))
def test_never_more_than_the_allowed_starts_and_always_something_to_start(steps: list[str]) -> None:
    slots, starts = Slots(good=Slot("a", "/a")), 0
    for step in steps:
        if step == "offer":
            slots, starts = book.offered(slots, Slot(NEW, "/n"), 5.0), 0
        elif step == "confirm":
            slots = book.confirmed(slots, NEW)
        elif step == "leave":
            slots = book.left(slots, "x", "X.")
        else:
            slots, slot = book.to_start(slots)
            starts += slots.trying is not None
            assert slot == (slots.trying or slots.good)
        assert starts <= MAX_STARTS
        assert slots.good.release in {"a", NEW}


# --- real processes


class Box:
    """A state folder, and programs that stand where an environment's Python would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slots = root / "agent" / book.SLOTS_FILE
        self.log = root / "log"
        self.log.touch()

    def program(self, name: str, body: str) -> Path:
        """An executable that writes its name to the log, then does what the body says."""
        path = self.root / name
        path.write_text(
            f"#!{sys.executable}\nimport os, signal, sys, time\n"
            # An exit raised within an import may be swallowed by the import system's own callbacks.
            "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
            f"open({str(self.log)!r}, 'a').write({name!r} + '\\n')\n"
            f"sys.path[:0] = {sys.path!r}\n"
            f"from pathlib import Path\nfrom landreeve_agent.launch import slots as book\n"
            f"SLOTS = Path({str(self.slots)!r})\n{body}\n"
        )
        path.chmod(0o755)
        return path

    def offer(self, program: Path, deadline_s: float = 30.0) -> None:
        book.write(self.slots, book.offered(book.read(self.slots), Slot(NEW, str(program)), deadline_s))

    def launch(self, good: Path, first: str = "") -> "subprocess.Popen[bytes]":
        code = first + (
            "import sys; from pathlib import Path; from landreeve_agent.launch.launcher import Launcher; "
            f"sys.exit(Launcher(Path({str(self.root)!r}), {str(good)!r}, [], stop_s=1.0).run())"
        )
        return subprocess.Popen([sys.executable, "-c", code])

    def started(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


FOREVER = "time.sleep(60)"


def end(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(15)
    finally:
        process.kill()
        process.wait()


def test_new_agent_that_keeps_dying_is_left_after_its_starts(box: Box) -> None:
    good, bad = box.program("good", FOREVER), box.program("bad", "os.kill(os.getpid(), signal.SIGKILL)")
    box.offer(bad)
    process = box.launch(good)
    until(lambda: "good" in box.started())
    assert box.started() == ["bad"] * MAX_STARTS + ["good"]
    failed = book.read(box.slots).failed
    assert failed is not None
    assert (failed.release, failed.cause) == (NEW, "boot_loop")
    assert end(process) == 0


def test_new_agent_that_hangs_is_ended_and_left(box: Box) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    good, hung = box.program("good", FOREVER), box.program("hung", deaf)
    box.offer(hung, deadline_s=0.5)
    process = box.launch(good)
    until(lambda: "good" in box.started(), 60)
    failed = book.read(box.slots).failed
    assert failed is not None
    assert failed.cause == "not_confirmed"
    assert end(process) == 0


def test_confirmed_agent_becomes_the_one_that_starts(box: Box) -> None:
    confirm = f"book.write(SLOTS, book.confirmed(book.read(SLOTS), {NEW!r}))\n{FOREVER}"
    good, new = box.program("good", FOREVER), box.program("new", confirm)
    box.offer(new, deadline_s=3.0)
    process = box.launch(good)
    until(lambda: book.read(box.slots).good.release == NEW)
    time.sleep(3.5)  # past the deadline: a confirmed one is no longer watched
    assert box.started() == ["new"]
    assert end(process) == 0
    again = box.launch(good)
    until(lambda: box.started() == ["new", "new"])
    assert end(again) == 0


def test_agent_that_asks_for_another_is_followed_by_it(box: Box) -> None:
    offer = f"book.write(SLOTS, book.offered(book.read(SLOTS), book.Slot({NEW!r}, {str(box.root / 'new')!r}), 30))"
    good = box.program("good", f"{offer}\nsys.exit({RESTART_CODE})")
    box.program("new", FOREVER)
    process = box.launch(good)
    until(lambda: box.started() == ["good", "new"])
    assert end(process) == 0


def test_environment_that_is_gone_is_left_at_once(box: Box) -> None:
    good = box.program("good", FOREVER)
    box.offer(box.root / "nothing-here")
    process = box.launch(good)
    until(lambda: box.started() == ["good"])
    failed = book.read(box.slots).failed
    assert failed is not None
    assert failed.cause == "cannot_start"
    assert end(process) == 0


def test_good_agent_that_fails_is_the_service_managers_matter(box: Box) -> None:
    process = box.launch(box.program("good", "sys.exit(3)"))
    assert process.wait(15) == 3


def test_start_that_cannot_be_counted_is_not_begun_and_the_site_runs_on(box: Box) -> None:
    good, new = box.program("good", FOREVER), box.program("new", FOREVER)
    box.offer(new)
    (box.slots.parent / f"{book.SLOTS_FILE}.new").mkdir()  # what a full disk does: the file cannot be written
    process = box.launch(good)
    until(lambda: box.started() == ["good"] or process.poll() is not None)
    assert process.poll() is None
    assert end(process) == 0


def test_agent_that_cannot_be_noted_as_left_is_ended_all_the_same(box: Box) -> None:
    block = f"Path({str(box.slots) + '.new'!r}).mkdir()\n{FOREVER}"
    good, new = box.program("good", FOREVER), box.program("new", block)
    box.offer(new, deadline_s=2.0)
    process = box.launch(good)
    until(lambda: box.started() == ["new", "good"] or process.poll() is not None)
    assert process.poll() is None
    assert end(process) == 0


def test_signal_that_comes_while_the_agent_is_started_reaches_it(box: Box) -> None:
    signalled = (
        "import os, signal, subprocess; made = subprocess.Popen.__init__\n"
        "def signalled(*args, **more): made(*args, **more); os.kill(os.getpid(), signal.SIGTERM)\n"
        "subprocess.Popen.__init__ = signalled\n"
    )
    process = box.launch(box.program("good", FOREVER), first=signalled)
    try:
        assert process.wait(20) in {0, 143}
    finally:
        process.kill()


# --- sockets that outlive an agent


def rounds(box: Box) -> str:
    """Code that knows ``life``, the number of this agent's start, and keeps the port in a file."""
    return (
        "from landreeve_agent.launch import sockets\n"
        f"life, port = len(Path({str(box.log)!r}).read_text().split()), Path({str(box.root / 'port')!r})\n"
        "def listen():\n"
        "    listening = sockets.listen('127.0.0.1', int(port.read_text()) if port.exists() else 0, 16)\n"
        "    port.write_text(str(listening.getsockname()[1]))\n"
        "    return listening\n"
    )


def test_who_calls_between_two_agents_waits_and_is_answered(box: Box) -> None:
    answer = f"""
listening = sockets.taken("serving") or listen()
sockets.leave("serving", listening)
if life > 1:
    time.sleep(1.0)
    caller, _ = listening.accept()
    caller.sendall(b"late")
sys.exit({RESTART_CODE} if life < 4 else 0)
"""
    process = box.launch(box.program("good", rounds(box) + answer))
    port = box.root / "port"
    until(lambda: port.exists() and port.read_text() != "")
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", int(port.read_text())), 20) as caller:
            assert caller.recv(10) == b"late"
    assert process.wait(15) == 0
    assert box.started() == ["good"] * 4


def test_agent_that_knows_nothing_of_sockets_costs_them_one_start(box: Box) -> None:
    lives = f"""
if life == 1:
    sockets.leave("serving", listen())
if life == 3:
    assert sockets.taken("serving") is None
    listen()  # nobody else has the port
sys.exit({RESTART_CODE} if life < 3 else 0)
"""
    assert box.launch(box.program("good", rounds(box) + lives)).wait(20) == 0
    assert box.started() == ["good"] * 3


@pytest.mark.parametrize("said", ["", "[]", "{", '{"serving": "x"}', '{"serving": 9999}', '{"serving": -1}'])
def test_sockets_that_make_no_sense_are_none(said: str) -> None:
    assert sockets.taken("serving", {sockets.HELD: said}) is None


def test_descriptor_that_is_no_listening_socket_is_none(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, socket.socket() as connected:
        for descriptor in (os.dup(file.fileno()), os.dup(connected.fileno())):
            assert sockets.taken("a", {sockets.HELD: json.dumps({"a": descriptor})}) is None


def test_what_nobody_took_is_closed() -> None:
    with sockets.listen("127.0.0.1", 0, 4) as listening:
        port = listening.getsockname()[1]
        environ = {sockets.HELD: json.dumps({"serving other 80": os.dup(listening.fileno())})}
    sockets.drop(environ)
    assert environ == {}
    sockets.listen("127.0.0.1", port, 4).close()


def test_without_a_launcher_systemd_is_asked_to_keep_what_serves_and_to_forget_what_does_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, sockets.listen("127.0.0.1", 0, 4) as listening:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        environ = {sockets.NOTIFY: str(tmp_path / "notify")}
        sockets.leave(sockets.named("serving", "::1", 80), listening, environ)
        said, (descriptor,), _, _ = socket.recv_fds(manager, 1000, 4)
        with socket.socket(fileno=descriptor) as again:
            assert (said, again.getsockname()) == (b"FDSTORE=1\nFDNAME=serving ..1 80", listening.getsockname())
        environ[sockets.HELD] = json.dumps({"serving ..1 81": os.dup(listening.fileno())})
        sockets.drop(environ)
        assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=serving ..1 81"
    sockets.leave("serving", listening, environ)  # nobody listens there any more: nothing happens


@pytest.mark.parametrize(("mine", "taken"), [(True, "later"), (False, "nothing")])
def test_what_systemd_passes_is_found_by_its_name_and_only_by_who_it_is_for(mine: bool, taken: str) -> None:
    code = f"""
import os
from landreeve_agent.launch import sockets
made = [sockets.listen("127.0.0.1", 0, 4) for _ in range(3)]
ports = [one.getsockname()[1] for one in made]
for place, one in enumerate(made):
    os.dup2(one.detach(), 20 + place)
for place in range(3):
    os.dup2(20 + place, 3 + place)
environ = {{"LISTEN_PID": str(os.getpid() + {int(not mine)}), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:a"}}
found = sockets.taken("a", environ)
print("nothing" if found is None else {{ports[0]: "former", ports[2]: "later"}}[found.getsockname()[1]])
assert sockets.taken("a", environ) is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (taken, "")
