"""Threads beside other programs."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine, Events

from ssmctb_monai.handlers import FreeCores, free_cores

CORES = 4


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Four cores in an hour, of which others take the given share; the program itself takes one and a half."""
    clock, threads = {"now": 0.0}, {"number": CORES}
    file = tmp_path / "stat"

    def let_pass(seconds, taken):
        clock["now"] += seconds
        clock["others"] = clock.get("others", 0.0) + taken * seconds
        ticks = 100 * (1.5 * clock["now"] + clock["others"])
        # user, nice, system, idle, waiting, interrupts (2), stolen by another machine
        file.write_text(
            f"cpu  {ticks / 2:.0f} {ticks / 8:.0f} {ticks / 8:.0f} 77777 88888 0 0 {ticks / 4:.0f} 5 5\ncpu0 1 2\n"
        )

    let_pass(0, 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(free_cores, "STATISTICS", file)
    monkeypatch.setattr(free_cores.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(free_cores.os, "cpu_count", lambda: CORES)
    monkeypatch.setattr(free_cores.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(free_cores.time, "process_time", lambda: 1.5 * clock["now"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads["number"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: threads.update(number=number))
    return let_pass


def run(handler, let_pass, steps):
    """Runs an engine whose iterations take the seconds and let others take the cores given."""
    seen = []
    engine = Engine(lambda engine, step: let_pass(*step))
    handler.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(torch.get_num_threads()))
    engine.run(steps)
    assert torch.get_num_threads() == CORES  # for what follows in the process
    return seen[0]


@pytest.mark.parametrize(
    ("taken", "number"), [(0.0, 4), (0.2, 4), (0.5, 3), (1.0, 3), (1.2, 3), (2.5, 1), (3.9, 1), (9.0, 1)]
)
def test_threads_are_as_many_as_free_cores(machine, caplog, taken, number):
    let_pass = machine
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        assert run(FreeCores(), let_pass, [(10, taken)]) == number
    expected = f"Other programs take {taken:.1f} of 4 cores, and threads wait for each other: {number} instead of 4 "
    assert [message.startswith(expected) for message in caplog.messages] == [True] * (number < 4)


def test_it_looks_in_intervals_and_the_number_only_falls(machine):
    let_pass = machine
    assert run(FreeCores(interval=20), let_pass, [(10, 3)]) == 4
    assert run(FreeCores(interval=20), let_pass, [(10, 3), (10, 1)]) == 2  # two cores, in the mean
    assert run(FreeCores(interval=20), let_pass, [(10, 3), (10, 1), (20, 0)]) == 2
    assert run(FreeCores(interval=20), let_pass, [(20, 0), (20, 3)]) == 1  # not what was before the last look


def test_a_number_that_was_given_stays(machine, monkeypatch):
    let_pass = machine
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert run(FreeCores(), let_pass, [(10, 4)]) == 4


def test_a_system_that_does_not_tell(machine, monkeypatch, tmp_path):
    let_pass = machine
    monkeypatch.setattr(free_cores, "STATISTICS", tmp_path / "absent")
    assert run(FreeCores(), let_pass, [(10, 4)]) == 4


def test_interval_of_no_length():
    with pytest.raises(ValueError, match=r"interval must be positive, got 0\."):
        FreeCores(interval=0)
