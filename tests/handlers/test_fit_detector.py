"""Which images a detector is fitted to, and when."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from ssmctb_monai.handlers import FitDetector
from ssmctb_monai.networks.nets import Detector


class MeanOfBrain(Detector):
    """Keeps the mean of the brain in a buffer."""

    def __init__(self):
        super().__init__(2, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def fit(self, batches):
        batches = list(batches)
        assert not any(isinstance(tensor, MetaTensor) for batch in batches for tensor in batch)
        self.mean.copy_(torch.cat([image[brain > 0] for image, brain in batches]).mean())


def loader(count, asked):
    for value in range(count):
        asked.append(value)
        image = torch.full((2, 1, 4, 4), float(value))
        yield {"image": MetaTensor(image), "brain": torch.ones(2, 1, 4, 4)}  # as random flips leave them


@pytest.mark.parametrize(("count", "mean"), [(2, 0.5), (9, 1.0)])
def test_before_a_validation_from_some_batches(count, mean):
    network, means = MeanOfBrain(), []
    evaluator = Engine(lambda engine, batch: means.append(float(network.mean)))
    FitDetector(network, loader(count, []), num_batches=3).attach(evaluator)
    evaluator.run([0])
    assert means == [mean]


def test_images_without_anomalies_where_anomalies_were_put_in():
    network = MeanOfBrain()
    batches = [{**batch, "image_clean": batch["image"] + 5} for batch in loader(2, [])]
    FitDetector(network, batches)(None)
    assert float(network.mean) == 5.5


def test_nothing_is_loaded_for_a_detector_that_fits_nothing():
    network, asked = Detector(2, 1), []
    network.weight = torch.nn.Parameter(torch.zeros(()))
    evaluator = Engine(lambda engine, batch: None)
    FitDetector(network, loader(2, asked)).attach(evaluator)
    evaluator.run([0])
    assert asked == []


def test_ill_number_of_batches():
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        FitDetector(MeanOfBrain(), [], num_batches=0)
