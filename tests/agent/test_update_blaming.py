"""Whose probation a death of the worker counts against."""

from dataclasses import replace

import pytest
from landreeve_agent.serving.ending import Running
from landreeve_agent.update.blaming import accused
from landreeve_agent.update.standing import FIRMWARE, Order, Phase, State


def state(model: str, phase: Phase = Phase.PROBATION, component: str = "model") -> State:
    order = Order(model, f"{model}-new", "2", 10, "r", 1, 10, component=component)
    return State(model, phase, order=order)


def running(model: str, release: str, version: str = "2", *, loading: bool = False) -> Running:
    return Running(model, version, release, loading)


DELAY, PRICE, SERVED = state("delay"), state("price"), state("served", Phase.COMMITTED)
AGENT, BOARD = state("agent", component="agent"), state("board", component=FIRMWARE)
ALL = (DELAY, PRICE, SERVED, AGENT, BOARD)


@pytest.mark.parametrize(
    ("suspects", "counted"),
    [
        pytest.param([], ["delay", "price", "agent", "board"], id="nobody is known: all that is new"),
        pytest.param([running("delay", "delay-new")], ["delay"], id="the one that ran"),
        pytest.param([running("delay", "delay-new"), running("price", "price-new")], ["delay", "price"], id="both ran"),
        pytest.param([running("delay", "delay-old"), running("price", "price-new")], ["price"], id="an old one beside"),
        pytest.param([running("delay", "delay-old")], ["agent", "board"], id="the active one beside its candidate"),
        pytest.param([running("served", "served-new")], ["agent", "board"], id="one that was proven: what is below it"),
        pytest.param([running("price", "", "2")], ["price"], id="its own process, known by its version"),
        pytest.param([running("price", "", "1")], ["agent", "board"], id="the own process of another version of it"),
        pytest.param([running("agent", "agent-new")], ["agent", "board"], id="a model by the name of the agent"),
    ],
)
def test_a_death_counts_against_what_ran(suspects: list[Running], counted: list[str]) -> None:
    assert [one.model for one in accused(ALL, suspects)] == counted


def test_a_version_that_dies_while_it_is_loaded_for_its_activation_speaks_against_nobody_else() -> None:
    loading = replace(DELAY, phase=Phase.ACTIVATING)
    suspects = [running("delay", "delay-new", loading=True)]
    assert accused((loading, PRICE, AGENT), suspects) == []
