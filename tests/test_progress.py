"""How far a loop is, and the time that it still takes."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace

import pytest

from ssmctb_monai import progress
from ssmctb_monai.progress import Clock, Progress


@pytest.fixture
def time(monkeypatch):
    """A time that passes as the test says; its start is arbitrary, as that of a monotonic clock."""
    fake = SimpleNamespace(now=1e6)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: fake.now))
    return fake


@pytest.mark.parametrize(
    ("seconds", "done", "total", "left"),
    [
        pytest.param(10, 1, 4, "0:00:30", id="first step"),
        pytest.param(20, 4, 5, "0:00:05", id="mean of the steps"),
        pytest.param(1, 3, 4, "0:00:00", id="whole seconds, down"),
        pytest.param(2, 3, 4, "0:00:01", id="whole seconds, up"),
        pytest.param(50, 5, 5, "0:00:00", id="done"),
        pytest.param(3600, 1, 31, "1 day, 6:00:00", id="more than a day"),
    ],
)
def test_time_left(time, seconds, done, total, left):
    clock = Clock()
    time.now += seconds
    assert str(clock.left(done, total)) == left


def test_steps_that_become_slower(time):
    clock = Clock()
    time.now += 1
    assert clock.left(1, 3) == timedelta(seconds=2)
    time.now += 9
    assert clock.left(2, 3) == timedelta(seconds=5)


def test_lines_of_a_loop_at_most_every_ten_seconds(time, caplog):
    progress = Progress("Case", total=6)
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        for seconds in (9, 1, 9, 11, 0, 30):
            time.now += seconds
            progress.step()
    assert caplog.messages == ["Case 2/6 | 0:00:20 left", "Case 4/6 | 0:00:15 left"]
