"""Events to tell listeners of."""

import pytest

from plait import events, spec


@pytest.fixture
def step():
    def make(number, **changed):
        values = {"loss": 3.762, "grad_norm": 0.2823, "lr": 3e-4, "tokens": 4096, "seconds": 2.0, "tokens_per_s": 2048.0}
        values |= {"mfu": None, "shares": {"0": [[0, 32]]}, "time": 1.7e9 + number, "generation": 1}
        return events.Step(step=number, **(values | changed))

    return make


@pytest.fixture
def run():
    return spec.parse({"data": {"corpus": ["a.txt"]}, "train": {"duration": "400 steps"}})
