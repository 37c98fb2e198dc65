"""Lines of progress that a person can follow."""

from __future__ import annotations

import logging
import re
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from ssmctb_monai.handlers import IntervalValidation, TrainingProgress, ValidationProgress, progress
from ssmctb_monai.losses import DRAEMLoss

LINE = re.compile(r"Epoch (\d+)/(\d+) \| loss (\S+) \((.*)\) \| (\S+) s \| (.*) left")


@pytest.fixture
def run(monkeypatch, caplog):
    """Runs an engine whose iterations take given seconds, and gives the lines that it logged."""

    def run(losses, max_epochs, seconds, first_epoch=0, validation_seconds=None):
        clock = SimpleNamespace(now=1e6)
        fake = SimpleNamespace(monotonic=lambda: clock.now, strftime=time.strftime, gmtime=time.gmtime)
        monkeypatch.setattr(progress, "time", fake)
        loss = DRAEMLoss(spatial_dims=2)

        def step(engine, value):
            clock.now += seconds
            loss.parts = {"l2": torch.tensor(value / 4), "focal": torch.tensor(value / 2)}
            return {"loss": torch.tensor(value, requires_grad=True)}

        engine = Engine(step)
        if first_epoch:
            engine.load_state_dict({"epoch": first_epoch, "max_epochs": max_epochs, "epoch_length": len(losses)})
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: None)
        validation = None
        if validation_seconds is not None:  # before the first epoch, of every second, and of the last
            evaluator = object.__new__(Evaluator)
            evaluator.run = lambda epoch: setattr(clock, "now", clock.now + validation_seconds)
            validation = IntervalValidation(2, evaluator, exec_at_start=True)
        TrainingProgress(loss, validation).attach(engine)
        if validation is not None:
            validation.attach(engine)
        with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
            engine.run(losses, max_epochs=max_epochs)
        return [LINE.search(record.getMessage()).groups() for record in caplog.records if "left" in record.getMessage()]

    return run


def test_a_line_an_epoch_with_the_means(run):
    lines = run([1.0, 2.0, 6.0], max_epochs=2, seconds=2)
    assert [line[:2] for line in lines] == [("1", "2"), ("2", "2")]
    for line in lines:
        assert float(line[2]) == 3
        assert line[3] == "l2 0.7500 + focal 1.5000"
        assert float(line[4]) == 6


def test_time_left(run):
    assert [line[5] for line in run([1.0, 1.0], max_epochs=4, seconds=600)] == [
        "1:00:00",
        "0:40:00",
        "0:20:00",
        "0:00:00",
    ]


def test_time_left_after_resuming(run):
    """Epochs of the run before took none of this run's time."""
    lines = run([1.0, 1.0], max_epochs=13, seconds=30, first_epoch=10)
    assert [line[0] for line in lines] == ["11", "12", "13"]
    assert [line[5] for line in lines] == ["0:02:00", "0:01:00", "0:00:00"]


def test_more_than_a_day_left(run):
    """59 epochs of two hours are 118 hours, not 22."""
    left = run([1.0], max_epochs=60, seconds=7200)[0][5]
    assert re.search(r"\b118\b|\b4 ?d", left), left


def test_time_left_has_the_validations_that_are_due(run):
    """Epochs of 60 s, of which the second, the fourth and the fifth are followed by 100 s."""
    left = [line[5] for line in run([1.0, 1.0], max_epochs=5, seconds=30, validation_seconds=100)]
    assert left == ["0:09:00", "0:08:00", "0:05:20", "0:04:20", "0:01:40"]


def test_validation_logs_its_metrics(caplog):
    engine = Engine(lambda engine, value: value)
    ValidationProgress().attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: engine.state.metrics.update(slice_auroc=0.91234, ap=1.0))
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        engine.run([0, 0])
    assert re.fullmatch(r"Validation, epoch 1 \| slice_auroc 0\.9123 \| ap 1\.0000 \| \d+\.\d s", caplog.messages[-1])


def test_mean_of_two_processes(run, monkeypatch):
    """The other one has three times the losses."""
    monkeypatch.setattr(progress.idist, "all_reduce", lambda tensor: tensor + 3 * tensor)
    monkeypatch.setattr(progress.idist, "get_world_size", lambda: 2)
    line = run([1.0, 2.0, 6.0], max_epochs=1, seconds=2)[0]
    assert float(line[2]) == 6
    assert line[3] == "l2 1.5000 + focal 3.0000"
