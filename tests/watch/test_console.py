"""The log line, when it is written, and what a terminal gets."""

import io
import math

import pytest

from plait import events
from plait.watch.console import Console, step_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(log_every, told, stream=None):
    stream = stream or io.StringIO()
    console = Console(log_every, stream)
    for event in told:
        console.on(event)
    console.close()
    return stream.getvalue().splitlines()


def numbers(text):
    return [int(line.split()[1]) for line in text if line.startswith("step") and "grad_norm" in line]


def test_the_line_is_the_fields_own(step):
    whole = step(2690, mfu=0.121, memory={"0": int(59.2 * 2**30), "1": 2**30}, tokens=2059, seconds=1.0)
    assert step_line([whole]) == "step 2690  loss 3.7620  grad_norm 0.2823  lr 3.0e-04  tok/s 2,059  mfu 12.1%  mem 59.2GiB"


def test_what_is_unknown_is_left_out(step):
    assert step_line([step(7)]) == "step 7  loss 3.7620  grad_norm 0.2823  lr 3.0e-04  tok/s 2,048"


def test_speed_is_the_mean_over_the_steps_since_the_last_line(step):
    told = [step(1, tokens=100, seconds=1.0, mfu=0.5), step(2, tokens=100, seconds=3.0, mfu=0.1)]
    assert "tok/s 50  mfu 20.0%" in step_line(told)


def test_a_straggler_has_a_line_that_says_who_and_in_what():
    slow = events.Straggler(1.0, 20, 1, 0, "node3", 4711, "computing", 0.0312, 0.0104, 3.0, "nothing: shares are as stated")
    recovered = events.Straggler(1.0, 90, 1, 0, "node3", 4711, "computing", 0.0105, 0.0104, 1.01, "", recovered=True)
    assert lines(10, [slow, recovered]) == [
        "step 20  replica 1 (rank 0) on node3, pid 4711, is slow in computing: 31.2 ms a sample, 10.4 of the others, 3.0 times as long; "
        "nothing: shares are as stated",
        "step 90  replica 1 (rank 0) on node3, pid 4711, is no longer slow in computing: 10.5 ms a sample, 10.4 of the others",
    ]


def test_numbers_that_are_not_finite_do_not_stop_the_log(step):
    assert "loss nan  grad_norm inf" in step_line([step(1, loss=math.nan, grad_norm=math.inf)])
    assert "loss nan" in step_line([step(1, loss=None)])


def test_first_and_last_always_have_a_line(step):
    assert numbers(lines(10, [step(number) for number in range(3, 28)])) == [3, 10, 20, 27]


@pytest.mark.parametrize("log_every", [1, 5, 1000])
def test_no_step_is_told_twice(step, log_every):
    told = [*[step(number) for number in range(1, 21)], events.Finished(1.0, 20)]
    found = numbers(lines(log_every, told))
    assert found == sorted(set(found))
    assert {1, 20} <= set(found)


def test_a_skipped_step_says_so(step):
    text = lines(10, [step(1), step(2), step(3, skipped=True, loss=math.nan), step(4)])
    assert numbers(text) == [1, 4]
    assert any("step 3  skipped" in line for line in text)


def test_every_other_event_has_its_line():
    told = [
        events.Started(1.0, "0.1.0", 2, 3_200_000, 400, "cpu"),
        events.Resumed(1.0, 200),
        events.Evaluated(1.0, 200, "validation", 3.21, 24.78, 0.331, 1000),
        events.Saved(1.0, 200, "out/step-00000200", 98 * 2**20, 0.94, 0.03),
        events.SaveFailed(1.0, 300, "No space left on device"),
        events.RolledBack(1.0, 200, "5 steps in a row were not finite"),
        events.Lost(1.0, 1, 0, "killed by signal 9"),
        events.Stopped(1.0, 250, "SIGTERM"),
        events.Finished(1.0, 400),
    ]
    assert lines(10, told) == [
        "plait 0.1.0: 3,200,000 parameters, 400 steps, 2 replicas on cpu",
        "resumed from step 200, 1 replica",
        "step 200  validation: loss 3.2100  perplexity 24.78  accuracy 33.1%",
        "step 200  saved out/step-00000200 (98.0 MiB in 0.9 s, training held up 0.03 s)",
        "step 300  NOT saved: No space left on device; the last good checkpoint stays, training goes on",
        "rolled back to step 200: 5 steps in a row were not finite",
        "lost replica 1 (rank 0): killed by signal 9",
        "stopped after step 250: SIGTERM; run the same command again to resume",
        "finished after step 400",
    ]


def test_a_file_gets_no_colours_and_no_bar(step):
    assert "\x1b" not in "\n".join(lines(1, [events.Started(1.0, "0.1.0", 1, 10**6, 4, "cpu"), step(1)]))


def test_a_terminal_gets_the_same_lines_and_a_bar(step, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    text = "\n".join(lines(1, [events.Started(1.0, "0.1.0", 1, 10**6, 4, "cpu"), step(1), step(2)], stream))
    assert "2/4" in text
    assert "steps" in text
    assert "step 2" in text.replace("\x1b[1;36m", "").replace("\x1b[0m", "")
    assert "\x1b" in text
