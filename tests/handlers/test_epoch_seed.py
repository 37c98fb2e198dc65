"""Every epoch's randomness is a function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, EnsureTyped
from torch import nn
from torch.utils.data import RandomSampler

from ssmctb_monai.data import LesionFreeDataset
from ssmctb_monai.handlers import EpochSeed
from ssmctb_monai.transforms import LesionFreePositionsd, RandLesionFreeCropd

SIZE = 10


@pytest.fixture
def make_dataset(tmp_path):
    def make(seed=0):
        rng = np.random.default_rng(0)
        cases = [
            {
                "case_id": name,
                "image": rng.random((1, SIZE, SIZE), dtype=np.float32),
                "label": np.zeros((1, SIZE, SIZE), np.uint8),
                "brain": np.ones((1, SIZE, SIZE), np.uint8),
            }
            for name in "abcde"
        ]
        transform = Compose(
            [
                LesionFreePositionsd(roi_size=6),
                EnsureTyped(["image", "label", "brain"], track_meta=False),
                RandLesionFreeCropd(roi_size=6, num_samples=2),
            ]
        )
        return LesionFreeDataset(cases, transform, tmp_path, seed=seed)

    return make


def make_loader(dataset, num_workers=0, **kwargs):
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
    return DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=num_workers, **kwargs)


def make_trainer(dataset, max_epochs, num_workers=0):
    """A tiny linear trainer that uses the global generator too, by its dropout."""
    torch.manual_seed(99)
    network = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 3, padding=1))
    loader = make_loader(dataset, num_workers)
    seen = []

    def prepare(batch, device=None, non_blocking=False, **kwargs):
        seen.append(batch["image"].clone())
        return batch["image"], batch["image"]

    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.01),
        loss_function=nn.MSELoss(),
        prepare_batch=prepare,
        train_handlers=[EpochSeed(loader)],
        decollate=False,
    )
    return trainer, seen


def states(trainer):
    return {"network": trainer.network, "optimizer": trainer.optimizer, "trainer": trainer}


def resume(trainer, saved):
    max_epochs = trainer.state.max_epochs
    for name, target in states(trainer).items():
        target.load_state_dict(saved[name])
    trainer.state.max_epochs = max_epochs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_training_is_unbroken_training(make_dataset, num_workers):
    unbroken, all_seen = make_trainer(make_dataset(), 4, num_workers)
    unbroken.run()

    first, first_seen = make_trainer(make_dataset(), 2)
    first.run()
    saved = {name: source.state_dict() for name, source in states(first).items()}

    second, second_seen = make_trainer(make_dataset(), 4)
    resume(second, saved)
    torch.manual_seed(12345)  # a new process is anywhere in its generators
    np.random.seed(12345)  # noqa: NPY002
    second.run()

    assert len(all_seen) == 12
    torch.testing.assert_close(first_seen + second_seen, all_seen, rtol=0, atol=0)
    for name, value in unbroken.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, rtol=0, atol=0)


def test_batches_differ_between_epochs_and_seeds(make_dataset):
    batches = []
    for seed in (0, 1):
        trainer, seen = make_trainer(make_dataset(seed), 3)
        trainer.run()
        batches += seen
    assert len({str(batch.tolist()) for batch in batches}) == len(batches) == 18


def test_global_generator_differs_between_epochs_and_seeds(make_dataset):
    """Dropout must not repeat itself every epoch."""
    draws = []
    for seed in (0, 1000):
        loader = make_loader(make_dataset(seed))
        trainer, _ = make_trainer(loader.dataset, 3)
        for epoch in (1, 2, 3):
            trainer.state.epoch = epoch
            EpochSeed(loader)(trainer)
            draws.append(torch.rand(1).item())
    assert len(set(draws)) == 6


def test_another_data_set_is_refused(make_dataset):
    with pytest.raises(TypeError, match="LesionFreeDataset, got Dataset"):
        EpochSeed(make_loader(Dataset([1, 2, 3])))


def test_another_sampler_is_refused(make_dataset):
    dataset = make_dataset()
    with pytest.raises(TypeError, match="DistributedSampler, got RandomSampler"):
        EpochSeed(DataLoader(dataset, sampler=RandomSampler(dataset)))
    with pytest.raises(TypeError, match="DistributedSampler"):
        EpochSeed(DataLoader(dataset))


def test_persistent_workers_are_refused(make_dataset):
    with pytest.raises(TypeError, match="persistent_workers"):
        EpochSeed(make_loader(make_dataset(), num_workers=1, persistent_workers=True))
