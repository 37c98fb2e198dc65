"""Which epochs are validated."""

from __future__ import annotations

import pytest
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from ssmctb_monai.handlers import IntervalValidation


class Validator(Evaluator):
    """Notes for which epochs it runs."""

    def __init__(self):
        super().__init__(device="cpu", val_data_loader=[0])
        self.epochs = []

    def run(self, global_epoch):
        self.epochs.append(global_epoch)


def validated(max_epochs, interval, behind=0, **keywords):
    validator, trainer = Validator(), Engine(lambda engine, batch: None)
    IntervalValidation(interval, validator, **keywords).attach(trainer)
    if behind:
        trainer.load_state_dict({"epoch": behind, "max_epochs": max_epochs, "epoch_length": 2})
    trainer.run([0, 1], max_epochs=max_epochs)
    return validator.epochs


@pytest.mark.parametrize(
    ("max_epochs", "interval", "expected"),
    [(4, 1, [1, 2, 3, 4]), (6, 2, [2, 4, 6]), (7, 3, [3, 6, 7]), (2, 5, [2]), (1, 1, [1])],
)
def test_every_interval_and_the_last_epoch_once(max_epochs, interval, expected):
    assert validated(max_epochs, interval) == expected


def test_before_training():
    assert validated(5, 2, exec_at_start=True) == [0, 2, 4, 5]


def test_a_resumed_training_with_more_epochs():
    assert validated(8, 3, behind=4) == [6, 8]


def test_a_last_epoch_that_moves_while_training():
    validator, trainer = Validator(), Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: setattr(trainer.state, "max_epochs", 5))
    IntervalValidation(3, validator).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert validator.epochs == [3, 5]
