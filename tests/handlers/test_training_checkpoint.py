"""Checkpoints: written atomically, the network validated last, and a resumed run that equals an unbroken one."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import signal
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from ssmctb_monai.checkpoints import Settings, check_checkpoint, load_settings
from ssmctb_monai.handlers import IntervalValidation, TrainingCheckpoint, TrainingProgress, TrainingRecord, checkpoint
from ssmctb_monai.metrics import LabelFreeThreshold, load_thresholds


class Scripted(Metric):
    """Gives one prepared metric after the other."""

    def __init__(self, metrics):
        self.metrics = iter(metrics)
        super().__init__(output_transform=lambda output: (0, 0))

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        return next(self.metrics)


def make(
    folder,
    metrics,
    max_epochs,
    resume=False,
    width=1,
    interval=1,
    extra=None,
    thresholds=None,
    settings=None,
    recorded=False,
    exec_at_start=False,
    save_interval=1,
    cases=("Made_002", "Made_001"),
):
    """A tiny linear trainer; also the network's weights by epoch."""
    torch.manual_seed(0)
    network = nn.Linear(width, 1)
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5)
    data = [{"image": torch.full((2, width), value), "label": torch.full((2, 1), 3 * value)} for value in (1.0, 2.0)]
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=data[:1],
        network=network,
        key_val_metric={"figure": Scripted(metrics)},
        decollate=False,
    )
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=data,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        decollate=False,
    )
    weights = {}
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda: weights.update({trainer.state.epoch: copy.deepcopy(network.state_dict())}),
    )
    record = None
    if interval:
        IntervalValidation(interval, evaluator, exec_at_start).attach(trainer)
    if recorded:
        progress = TrainingProgress(trainer.loss_function)
        progress.attach(trainer)
        record = TrainingRecord(evaluator, progress, cases, seed=7)
        record.attach(trainer)
    save_dict = {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler, **(extra or {})}
    given = None if thresholds is None else lambda: thresholds(trainer.state.epoch)
    checkpoint = TrainingCheckpoint(
        folder, save_dict, network, evaluator, resume, given, settings, record, save_interval
    )
    checkpoint.attach(trainer)
    return trainer, weights


def run(*args, **kwargs):
    trainer, weights = make(*args, **kwargs)
    trainer.run()
    return trainer, weights


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def load(path):
    return torch.load(path, weights_only=True)


# ---------------------------------------------------------------------------------------------------------------- files


def test_model_is_the_bare_state_dict_of_the_last_epoch(tmp_path):
    """Its metric has no say, not even where it is not defined."""
    _, weights = run(tmp_path, [0.2, 0.7, 0.3, float("nan")], 4)
    model = load(tmp_path / "model.pt")
    assert isinstance(model, OrderedDict)
    assert equal(model, weights[4])
    assert not any(equal(model, weights[epoch]) for epoch in (1, 2, 3))
    nn.Linear(1, 1).load_state_dict(model)


def test_last_holds_everything_of_the_last_epoch(tmp_path):
    _, weights = run(tmp_path, [0.7, 0.2, 0.3], 3)
    last = load(tmp_path / "training.pt")
    assert equal(last["network"], weights[3])
    assert {"network", "optimizer", "lr_scheduler", "trainer"} <= last.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "training.pt"]


def test_both_files_are_there_after_every_epoch(tmp_path):
    trainer, weights = make(tmp_path / "new" / "folder", [0.1, 0.2, 0.3], 3)

    def check():
        for name in ("model.pt", "training.pt"):
            state = load(tmp_path / "new" / "folder" / name)
            assert equal(state.get("network", state), weights[trainer.state.epoch])

    trainer.add_event_handler(Events.EPOCH_COMPLETED, check)
    trainer.run()


def test_model_is_that_of_the_epoch_validated_last(tmp_path):
    trainer, weights = make(tmp_path, [0.5, 0.4, 0.3], 5, interval=2)
    seen = {}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED(event_filter=lambda _, epoch: epoch > 1),
        lambda: seen.update({trainer.state.epoch: load(tmp_path / "model.pt")}),
    )
    trainer.run()
    assert {epoch: next(at for at in weights if equal(weights[at], seen[epoch])) for epoch in seen} == {
        **{2: 2, 3: 2},
        **{4: 4, 5: 5},
    }


def test_a_validation_before_training_writes_nothing(tmp_path):
    trainer, _ = make(tmp_path, [0.5, 0.4], 2, interval=2, exec_at_start=True)
    files = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: files.append([*tmp_path.iterdir()]))
    trainer.run()
    assert files[:2] == [[], []]
    assert [path.name for path in files[2]] == ["training.pt"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["training.pt", "model.pt"])
def test_a_save_that_dies_midway_leaves_the_old_file(tmp_path, monkeypatch, name, error):
    _, weights = run(tmp_path, [0.1, 0.2], 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = torch.save

    def die(state, file, **kwargs):
        if ("network" in state) != (name == "training.pt"):
            return real(state, file, **kwargs)
        if hasattr(file, "write"):
            file.write(b"half a checkpoint")
        else:
            with open(file, "wb") as opened:
                opened.write(b"half a checkpoint")
        raise error

    trainer, _ = make(tmp_path, [0.3], 3, resume=True)
    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(type(error)):
        trainer.run()
    assert (tmp_path / name).read_bytes() == before[name]
    assert equal(load(tmp_path / "training.pt")["network"], weights[2])
    assert {path.name for path in tmp_path.iterdir()} == before.keys()  # no half file is left over


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("behind", [1, 2, 3])
def test_resumed_training_is_unbroken_training(tmp_path, behind):
    metrics = [0.1, 0.4, 0.3, 0.2]
    unbroken, weights = run(tmp_path / "unbroken", metrics, 4)
    run(tmp_path / "broken", metrics, behind)
    resumed, resumed_weights = run(tmp_path / "broken", metrics[behind:], 4, resume=True)
    assert sorted(resumed_weights) == list(range(behind + 1, 5))
    assert all(equal(resumed_weights[epoch], weights[epoch]) for epoch in resumed_weights)
    assert resumed.state.epoch == unbroken.state.epoch == 4
    assert resumed.state.iteration == unbroken.state.iteration
    assert equal(load(tmp_path / "broken" / "model.pt"), load(tmp_path / "unbroken" / "model.pt"))
    assert resumed.optimizer.param_groups[0]["lr"] == unbroken.optimizer.param_groups[0]["lr"] == 0.025


def test_model_of_a_resumed_run_is_that_of_the_epoch_validated_last(tmp_path):
    _, weights = run(tmp_path, [0.5], 2, interval=2)
    trainer, resumed = make(tmp_path, [0.4, 0.3], 5, interval=2, resume=True)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda: seen.append(
            [epoch for epoch, at in {**weights, **resumed}.items() if equal(load(tmp_path / "model.pt"), at)]
        ),
    )
    trainer.run()
    assert seen == 4 * [[2]] + 2 * [[4]]
    assert equal(load(tmp_path / "model.pt"), resumed[5])


def test_no_epoch_was_validated(tmp_path, caplog):
    """The network is the last one, also of a resumed run."""
    for resume, epochs in ((False, 2), (True, 3)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
            _, weights = run(tmp_path, [], epochs, interval=None, resume=resume)
        assert equal(load(tmp_path / "model.pt"), weights[epochs])
        (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("ssmctb_monai")]
        assert "No epoch was validated" in warning
        assert "model.pt" in warning


def test_a_network_that_was_validated_is_not_replaced_by_one_that_was_not(tmp_path, caplog):
    _, weights = run(tmp_path, [0.5], 1, thresholds=of_epoch)
    run(tmp_path, [], 2, interval=None, resume=True, thresholds=of_epoch)
    assert equal(load(tmp_path / "model.pt"), weights[1])
    assert saved_in(tmp_path) == 1
    assert "No epoch was validated" not in caplog.text


def test_max_epochs_may_be_raised(tmp_path):
    run(tmp_path, [0.1, 0.2], 2)
    trainer, weights = run(tmp_path, [0.3, 0.4, 0.5], 5, resume=True)
    assert trainer.state.max_epochs == trainer.state.epoch == 5
    assert sorted(weights) == [3, 4, 5]


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    run(tmp_path, [0.1, 0.2], 2)
    before = load(tmp_path / "training.pt")["network"]
    trainer, weights = run(tmp_path, [], 2, resume=True)
    assert not weights
    assert trainer.state.epoch == 2
    assert equal(load(tmp_path / "training.pt")["network"], before)


def test_resume_says_from_where(tmp_path, caplog):
    run(tmp_path, [0.1, 0.2], 2)
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        run(tmp_path, [0.3], 3, resume=True)
    assert "training.pt" in caplog.text
    assert "epoch 2" in caplog.text


def test_nothing_to_resume_from(tmp_path):
    trainer, weights = make(tmp_path, [0.1], 1, resume=True)
    with pytest.raises(FileNotFoundError, match=r"training\.pt"):
        trainer.run()
    assert not weights


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"width": 2}, id="shape"),
        pytest.param({"extra": {"weight_average": nn.Linear(1, 1)}}, id="part that was not saved"),
        pytest.param({"extra": {"optimizer": torch.optim.Adam([nn.Parameter(torch.ones(1))])}}, id="optimizer"),
        pytest.param({"extra": {"network": nn.Linear(1, 1, bias=False)}}, id="missing weights"),
    ],
)
def test_another_configuration(tmp_path, other):
    run(tmp_path, [0.1, 0.2], 2)
    before = (tmp_path / "training.pt").read_bytes()
    trainer, weights = make(tmp_path, [0.3], 3, resume=True, **other)
    with pytest.raises(ValueError, match=r"training\.pt was made with another configuration"):
        trainer.run()
    assert not weights
    assert (tmp_path / "training.pt").read_bytes() == before


def test_only_weights_are_loaded(tmp_path, monkeypatch):
    """A file from elsewhere must not run code."""
    calls = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: calls.append(kwargs) or real(*args, **kwargs))
    run(tmp_path, [0.1], 1)
    run(tmp_path, [0.2], 2, resume=True)
    assert [call.get("weights_only") for call in calls] == [True]


# ------------------------------------------------------------------------------------------------------- starting anew


def test_starting_anew_over_a_run_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        run(tmp_path, [0.9, 0.8], 2)
        assert not [record for record in caplog.records if record.name.startswith("ssmctb_monai")]
        _, weights = run(tmp_path, [0.1], 1)
    assert "training.pt" in caplog.text
    assert "--resume true" in caplog.text
    assert equal(load(tmp_path / "model.pt"), weights[1])  # the old run's metric does not count
    assert equal(load(tmp_path / "training.pt")["network"], weights[1])


# ---------------------------------------------------------------------------------------------------------- thresholds


def of_epoch(epoch):
    """Thresholds that tell in which epoch they were found."""
    return {name: LabelFreeThreshold(epoch + 0.5, 0.01, "2 cases") for name in ("model", "baseline_flair")}


def fail(epoch):
    raise ValueError("There is no lesion-free region.")


def saved_in(folder):
    """Epoch whose thresholds are on disk."""
    thresholds = load_thresholds(folder / "model_thresholds.json")
    (epoch,) = {threshold.value - 0.5 for threshold in thresholds.values()}
    assert thresholds == of_epoch(int(epoch))
    return epoch


def test_thresholds_are_those_of_the_last_epoch(tmp_path):
    calls = []
    _, weights = run(tmp_path, [0.2, 0.7, 0.3, 0.6], 4, thresholds=lambda epoch: calls.append(epoch) or of_epoch(epoch))
    assert saved_in(tmp_path) == 4
    assert calls == [1, 2, 3, 4]
    assert equal(load(tmp_path / "model.pt"), weights[4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model_thresholds.json", "training.pt"]


def test_thresholds_belong_to_the_network_beside_them_after_every_epoch(tmp_path):
    trainer, weights = make(tmp_path, [0.3, 0.2, 0.5, 0.4], 4, thresholds=of_epoch)

    def check():
        assert equal(load(tmp_path / "model.pt"), weights[saved_in(tmp_path)])

    trainer.add_event_handler(Events.EPOCH_COMPLETED, check)
    trainer.run()
    assert saved_in(tmp_path) == 4


def test_settings_lie_beside_the_network(tmp_path):
    network = {"_target_": "ssmctb_monai.networks.nets.DRAEM", "spatial_dims": 3}
    settings = Settings("draem", ["flair"], 3, [2, 2, 2], [32, 32, 32], "constant", 3, "ssmctb", network=network)
    run(tmp_path, [0.2, 0.7], 2, settings=settings)
    found = load_settings(tmp_path / "model.pt", {})
    assert dataclasses.replace(found, sha256=None) == settings
    assert check_checkpoint(tmp_path / "model.pt", found) == tmp_path / "model.pt"  # of its checksum
    run(tmp_path, [0.1], 1, interval=None)  # anew, without a validation and without settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "training.pt"]


def test_thresholds_of_epochs_that_were_validated_only(tmp_path):
    asked = []
    run(tmp_path, [0.5, 0.6, 0.4], 5, interval=2, thresholds=lambda epoch: asked.append(epoch) or of_epoch(epoch))
    assert asked == [2, 4, 5]
    assert saved_in(tmp_path) == 5


def test_no_thresholds_without_a_validation(tmp_path):
    """The network is that of the last epoch, for which there are none."""
    (tmp_path / "model_thresholds.json").write_text("of another run")
    run(tmp_path, [], 2, interval=None, thresholds=of_epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "training.pt"]


def test_thresholds_of_an_earlier_run_are_removed_at_the_start(tmp_path):
    run(tmp_path, [0.9], 1, thresholds=of_epoch)
    trainer, _ = make(tmp_path, [0.1], 1, thresholds=of_epoch)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: seen.append((tmp_path / "model_thresholds.json").exists())
    )
    trainer.run()
    assert seen == [False, False]
    assert saved_in(tmp_path) == 1


def test_a_run_without_thresholds_removes_those_of_an_earlier_one(tmp_path):
    run(tmp_path, [0.9], 1, thresholds=of_epoch)
    run(tmp_path, [0.1], 1)
    assert not (tmp_path / "model_thresholds.json").exists()


def test_thresholds_are_kept_on_resume(tmp_path):
    run(tmp_path, [0.5], 2, interval=2, thresholds=of_epoch)
    trainer, _ = make(tmp_path, [0.4], 4, resume=True, interval=2, thresholds=of_epoch)
    seen = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(saved_in(tmp_path)))
    trainer.run()
    assert seen == 4 * [2]
    assert saved_in(tmp_path) == 4


def test_thresholds_that_cannot_be_found(tmp_path, caplog):
    """The network is saved all the same, and no threshold of another one stays beside it."""
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        _, weights = run(tmp_path, [0.1, 0.2], 2, thresholds=lambda epoch: of_epoch(1) if epoch == 1 else fail(epoch))
    assert equal(load(tmp_path / "model.pt"), weights[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "training.pt"]
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("ssmctb_monai")]
    assert "model.pt" in warning
    assert "There is no lesion-free region." in warning


def test_other_errors_of_thresholds_are_not_hidden(tmp_path):
    def wrong(epoch):
        raise TypeError("a mistake in the program")

    trainer, _ = make(tmp_path, [0.1], 1, thresholds=wrong)
    with pytest.raises(TypeError, match="a mistake"):
        trainer.run()


def test_a_save_of_thresholds_that_dies_midway(tmp_path, monkeypatch):
    """No half file, and none that belongs to another network, lies beside the network."""
    _, before = run(tmp_path, [0.1], 1, thresholds=of_epoch)
    real = Path.write_text

    def die(path, text, **keywords):
        real(path, text[: len(text) // 2])
        raise OSError("no space left on device")

    trainer, after = make(tmp_path, [0.2], 2, resume=True, thresholds=of_epoch)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", die)
        with pytest.raises(OSError, match="no space"):
            trainer.run()
    if (tmp_path / "model_thresholds.json").exists():
        assert equal(load(tmp_path / "model.pt"), {**before, **after}[saved_in(tmp_path)])
    run(tmp_path, [0.2], 2, resume=True, thresholds=of_epoch)
    assert saved_in(tmp_path) == 2


# --------------------------------------------------------------------------------------------------------------- record


def record_in(folder):
    return json.loads((folder / "model_record.json").read_text(encoding="utf-8"))


def test_record_lies_beside_the_network(tmp_path):
    run(tmp_path, [0.5, 0.25], 3, interval=2, recorded=True)
    record = record_in(tmp_path)
    assert (record["epochs"], record["iterations"]) == (3, 6)
    assert [(entry["epoch"], entry["figures"]) for entry in record["history"]] == [
        (2, {"figure": 0.5}),
        (3, {"figure": 0.25}),
    ]
    assert load(tmp_path / "training.pt")["record"]["history"] == record["history"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model_record.json", "training.pt"]


def test_record_belongs_to_the_network_beside_it(tmp_path):
    """Where the run ends between two validations, it ends with the one of the network."""
    trainer, _ = make(tmp_path, [0.5], 4, interval=2, recorded=True)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda: trainer.terminate())
    trainer.run()
    assert (record_in(tmp_path)["epochs"], record_in(tmp_path)["iterations"]) == (2, 4)
    assert len(record_in(tmp_path)["history"]) == 1


def test_history_goes_on_when_training_resumes(tmp_path):
    metrics = [0.1, 0.4, 0.3, 0.2]
    run(tmp_path / "unbroken", metrics, 4, recorded=True)
    run(tmp_path / "broken", metrics, 2, recorded=True)
    before = record_in(tmp_path / "broken")
    run(tmp_path / "broken", metrics[2:], 4, resume=True, recorded=True)
    record, unbroken = record_in(tmp_path / "broken"), record_in(tmp_path / "unbroken")
    assert record["history"] == unbroken["history"]
    assert [entry["figures"]["figure"] for entry in record["history"]] == metrics
    assert {**record, "seconds": 0} == {**unbroken, "seconds": 0}
    assert before["history"] == record["history"][:2]


def test_a_run_does_not_go_on_with_other_cases(tmp_path):
    """Another split as large would train on test patients, and the record would not say so."""
    run(tmp_path, [0.5], 1, recorded=True, cases=["Made_001", "Made_002"])
    trainer, weights = make(tmp_path, [0.5], 2, resume=True, recorded=True, cases=["Made_003", "Made_002"])
    with pytest.raises(ValueError, match=r"training\.pt .*: cases Made_001 are missing and cases Made_003 are new"):
        trainer.run()
    assert not weights
    run(tmp_path, [0.5], 2, resume=True, recorded=True, cases=["Made_002", "Made_001"])
    assert record_in(tmp_path)["epochs"] == 2


def test_a_run_that_kept_no_cases_goes_on(tmp_path):
    """As of an earlier version."""
    run(tmp_path, [0.5], 1, recorded=True)
    last = load(tmp_path / "training.pt")
    del last["record"]["cases"]
    torch.save(last, tmp_path / "training.pt")
    run(tmp_path, [0.5], 2, resume=True, recorded=True)
    assert record_in(tmp_path)["epochs"] == 2


def test_record_of_a_run_without_a_validation(tmp_path):
    run(tmp_path, [], 2, interval=None, recorded=True)
    assert record_in(tmp_path)["epochs"] == 2
    assert record_in(tmp_path)["history"] == []


def test_record_of_an_earlier_run_is_removed(tmp_path):
    run(tmp_path, [0.9], 1, recorded=True)
    trainer, _ = make(tmp_path, [0.1], 1)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.extend(tmp_path.iterdir()))
    trainer.run()
    assert seen == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "training.pt"]


# ------------------------------------------------------------------------------------------------------------ processes


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Two processes had one batch an epoch, now there are two."""
    run(tmp_path, [0.2, 0.7], 2)
    last = load(tmp_path / "training.pt")
    assert last["processes"] == 1
    last["processes"], last["trainer"] = 2, {**last["trainer"], "epoch_length": 1, "iteration": 2}
    torch.save(last, tmp_path / "training.pt")
    trainer, weights = run(tmp_path, [0.3], 3, resume=True)
    assert list(weights) == [3]
    assert (trainer.state.epoch, trainer.state.epoch_length, trainer.state.iteration) == (3, 2, 6)
    assert load(tmp_path / "training.pt")["trainer"]["epoch_length"] == 2


def test_a_file_that_names_no_processes_is_of_one(tmp_path):
    run(tmp_path, [0.2, 0.7], 2)
    last = load(tmp_path / "training.pt")
    del last["processes"]
    torch.save(last, tmp_path / "training.pt")
    assert list(run(tmp_path, [0.3], 3, resume=True)[1]) == [3]
    torch.save({**last, "trainer": {**last["trainer"], "epoch_length": 1, "iteration": 2}}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match="1 batches an epoch, now there are 2"):
        run(tmp_path, [0.3], 4, resume=True)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    """Others must not even remove what it has written."""
    monkeypatch.setattr(checkpoint.idist, "get_rank", lambda: 1)
    for name in ("training.pt", "model.pt", "model_thresholds.json", "model_record.json"):
        (tmp_path / name).write_text("of the first process")
    asked = []
    run(tmp_path, [0.2, 0.7], 2, thresholds=lambda epoch: asked.append(epoch) or {}, recorded=True)
    assert asked == [1, 2]  # they come from the cases of all processes
    assert [path.read_text() for path in tmp_path.iterdir()] == 4 * ["of the first process"]


@pytest.mark.parametrize("lengths", [(2, 2), (2, 3)])
def test_processes_need_as_many_batches(tmp_path, monkeypatch, lengths):
    def gather(found, own):
        assert own == 2
        found[:] = lengths

    trainer, _ = make(tmp_path, [0.2], 1)
    handler = TrainingCheckpoint(tmp_path, {}, trainer.network, trainer)
    monkeypatch.setattr(checkpoint.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(checkpoint.distributed, "all_gather_object", gather)
    if lengths == (2, 2):
        handler.started(trainer)
    else:
        with pytest.raises(RuntimeError, match=r"\[2, 3\] batches an epoch"):
            handler.started(trainer)


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def interrupted(folder, count, **options):
    """Presses Ctrl-C in the middle of the second epoch."""
    trainer, weights = make(folder, [0.1] * 9, 5, interval=4, save_interval=4, **options)

    def press():
        for _ in range(count):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)  # Python handles it in between: two that wait count as one

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    return weights


def test_interrupted_training_saves_its_epoch_and_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        weights = interrupted(tmp_path / "broken", 1)
    assert caplog.messages[-1] == f"Saved {tmp_path}/broken/training.pt, epoch 2 of 5: `--resume true` goes on."
    assert equal(load(tmp_path / "broken" / "training.pt")["network"], weights[2])
    _, resumed = run(tmp_path / "broken", [0.1] * 9, 5, resume=True, interval=4)
    _, unbroken = run(tmp_path / "unbroken", [0.1] * 9, 5, interval=4)
    assert sorted(resumed) == [3, 4, 5]
    assert equal(resumed[5], unbroken[5])


def test_training_that_is_interrupted_twice_stops_at_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        weights = interrupted(tmp_path, 2)
    assert sorted(weights) == [1]
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages[-1] == "Nothing was saved yet: the same command begins anew."
