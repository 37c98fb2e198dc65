"""What the record of a training says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import monai
import pytest
import torch
from ignite.engine import Engine

import ssmctb_monai
from ssmctb_monai.handlers import TrainingRecord, training_record


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(training_record, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def make(cases=("b", "a"), device="cpu"):
    """A record, and an epoch of it: seconds, losses and, if it is validated, metrics."""
    evaluator, progress = Engine(lambda engine, batch: None), SimpleNamespace(means={})
    trainer = Engine(lambda engine, batch: None)
    trainer.state.device, trainer.state.epoch = torch.device(device), 0
    record = TrainingRecord(evaluator, progress, cases, seed=3)

    def epoch(clock, seconds, losses, metrics=None):
        trainer.state.epoch += 1
        trainer.state.iteration = 5 * trainer.state.epoch
        clock.now += seconds
        progress.means = losses
        if metrics is not None:
            evaluator.state.epoch, evaluator.state.metrics = trainer.state.epoch, metrics
        record.epoch_completed(trainer)

    return record, trainer, epoch


def test_content(clock, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 13)
    record, trainer, epoch = make()
    record.started(trainer)
    epoch(clock, 2.04, {"loss": 3.0, "l2": 1.0})
    epoch(clock, 1, {"loss": 2.0, "l2": 0.5}, {"slice_auroc": 0.75, "pixel_average_precision": float("nan")})
    epoch(clock, 1, {"loss": 1.0, "l2": 0.25})
    content = record.content(trainer)
    assert content == {
        "versions": {
            "ssmctb_monai": ssmctb_monai.__version__,
            "torch": str(torch.__version__),
            "monai": monai.__version__,
        },
        "seed": 3,
        "number_of_cases": 2,
        "cases": ["b", "a"],
        "epochs": 3,
        "iterations": 15,
        "seconds": 4.0,
        "device": "cpu",
        "threads": 13,
        "processes": 1,
        "history": [
            {
                "epoch": 2,
                "losses": {"loss": 2.0, "l2": 0.5},
                "figures": {"slice_auroc": 0.75, "pixel_average_precision": None},
            }
        ],
    }
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_name_of_the_gpu(clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    record, trainer, _ = make(device="cuda:1")
    assert record.content(trainer)["device"] == "GPU 1"


def test_history_and_seconds_of_all_runs(clock, tmp_path):
    record, trainer, epoch = make()
    record.started(trainer)
    epoch(clock, 10, {"loss": 3.0}, {"slice_auroc": 0.5})
    torch.save(record.state_dict(), tmp_path / "state.pt")
    clock.now += 1000  # nobody trains
    record, trainer, epoch = make()
    record.started(trainer)
    clock.now += 1
    record.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trainer.state.epoch = 1
    epoch(clock, 20, {"loss": 2.0}, {"slice_auroc": 0.75})
    content = record.content(trainer)
    assert content["seconds"] == 31
    assert [(entry["epoch"], entry["figures"]["slice_auroc"]) for entry in content["history"]] == [(1, 0.5), (2, 0.75)]


def test_a_validation_before_training_is_no_epoch(clock):
    record, trainer, epoch = make()
    record.evaluator.state.epoch, record.evaluator.state.metrics = 0, {"slice_auroc": 0.5}
    record.started(trainer)
    epoch(clock, 1, {"loss": 1.0})
    assert record.content(trainer)["history"] == []


def test_a_saved_state_does_not_change_any_more(clock):
    record, trainer, epoch = make()
    record.started(trainer)
    epoch(clock, 1, {"loss": 1.0}, {"slice_auroc": 0.5})
    other, trainer, epoch = make()
    state = record.state_dict()
    other.load_state_dict(state)
    other.started(trainer)
    epoch(clock, 1, {"loss": 1.0}, {"slice_auroc": 0.5})
    assert len(other.history) == 2
    assert len(state["history"]) == len(record.history) == 1
