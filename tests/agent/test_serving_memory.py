"""Which model sleeps when another needs its memory, and what can never fit."""

import gc
from dataclasses import dataclass
from pathlib import Path

import pytest
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.memory import (
    Memory,
    Worth,
    budget_bytes,
    estimate_bytes,
    next_to_sleep,
    usable_bytes,
)

MB = 1_000_000


@dataclass(eq=False)
class Sleeper:
    """A tenant that only says what it is."""

    name: str
    worth: Worth = Worth.ACTIVE
    cost_bytes: int = 0
    last_used: float = float("-inf")
    woke: float = float("-inf")
    awake: bool = False
    reason: str = ""

    def sleep(self, reason: str) -> None:
        self.awake, self.reason = False, reason


class Clock:
    """A clock that goes on only when somebody waits."""

    now = 100.0

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def house(limit_mb: int, clock: Clock | None = None) -> Memory:
    clock = clock or Clock()
    return Memory(limit_mb * MB, clock=clock.read, wait=clock.wait)


def move_in(memory: Memory, tenant: Sleeper, cost_mb: int, expected_mb: int | None = None) -> None:
    with memory.room(tenant, lambda: (expected_mb or cost_mb) * MB):
        tenant.cost_bytes, tenant.awake = cost_mb * MB, True


def test_shadows_sleep_before_old_versions_and_these_before_what_serves() -> None:
    tenants = [Sleeper("active"), Sleeper("old", Worth.OLD), Sleeper("shadow", Worth.SHADOW)]
    order = []
    while tenants:
        victim = next_to_sleep(tenants, 100.0)
        assert victim is not None
        order.append(victim.name)
        tenants.remove(victim)  # type: ignore[arg-type]
    assert order == ["shadow", "old", "active"]


def test_of_equals_the_one_used_longest_ago_sleeps() -> None:
    victim = next_to_sleep([Sleeper("late", last_used=90), Sleeper("early", last_used=10)], 100.0)
    assert victim is not None
    assert victim.name == "early"


def test_an_idle_active_version_sleeps_before_a_shadow_in_use() -> None:
    victim = next_to_sleep([Sleeper("shadow", Worth.SHADOW, last_used=99.9), Sleeper("active", last_used=10)], 100.0)
    assert victim is not None
    assert victim.name == "active"


def test_a_newcomer_sends_only_as_many_to_sleep_as_it_needs() -> None:
    memory = house(100)
    first, second, third = (Sleeper(name) for name in ("first", "second", "third"))
    for tenant in (first, second, third):
        tenant.last_used = 10.0
        move_in(memory, tenant, 30)
    newcomer = Sleeper("newcomer")
    first.last_used, second.last_used = 50.0, 40.0
    move_in(memory, newcomer, 40)
    assert [t.awake for t in (first, second, third, newcomer)] == [True, True, False, True]
    assert third.reason == "asleep to make room for newcomer; the next request wakes it"
    assert memory.held_bytes == 100 * MB


def test_a_model_that_turns_out_larger_than_expected_makes_others_sleep_afterwards() -> None:
    memory = house(100)
    small, large = Sleeper("small"), Sleeper("large")
    move_in(memory, small, 30)
    move_in(memory, large, 80, expected_mb=20)
    assert (small.awake, large.awake) == (False, True)


def test_what_is_larger_than_all_the_room_is_refused_with_what_to_do() -> None:
    memory = house(100)
    with pytest.raises(LoadFailedError) as refusal:
        memory.require_possible("delay 2.0.0", 101 * MB)
    assert refusal.value.cause == "too_large"
    assert refusal.value.sentence.startswith("delay 2.0.0 needs 101 MB and all models together may take 100 MB: raise")


def test_two_busy_models_take_turns_instead_of_one_request_each() -> None:
    clock = Clock()
    memory = house(50, clock)
    first, second = Sleeper("first"), Sleeper("second")
    move_in(memory, first, 40)
    first.woke = first.last_used = clock.now
    move_in(memory, second, 40)
    assert (first.awake, second.awake) == (False, True)
    assert clock.now >= 101.0


def test_a_failed_load_takes_no_room() -> None:
    memory = house(100)
    broken = Sleeper("broken")
    with pytest.raises(LoadFailedError), memory.room(broken, lambda: MB):
        raise LoadFailedError("bad_graph", "x")
    assert memory.held_bytes == 0


def test_a_forgotten_tenant_gives_its_room_back() -> None:
    memory = house(100)
    move_in(memory, Sleeper("gone"), 60)
    gc.collect()
    assert memory.held_bytes == 0


def test_the_automatic_budget_is_a_share_of_what_the_cgroup_leaves(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8000000 kB\nMemFree: 1 kB\n")
    assert usable_bytes(tmp_path) == 8_000_000 * 1024
    (tmp_path / "proc/self/mountinfo").write_text("1 2 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (tmp_path / "sys/fs/cgroup/box").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/box/memory.max").write_text("1000000000\n")
    assert budget_bytes(0, usable_bytes(tmp_path)) == 600_000_000
    assert budget_bytes(250, usable_bytes(tmp_path)) == 250 * MB


def test_a_graph_is_expected_to_cost_more_than_its_file() -> None:
    assert estimate_bytes(10 * MB, "onnxruntime") == 16 * MB
    assert estimate_bytes(10 * MB, "openvino") > estimate_bytes(10 * MB, "onnxruntime")
