"""Training against a discriminator: its losses, a step by hand, resumption."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.networks.nets import PatchDiscriminator
from torch import nn

from ssmctb_monai.engines import Adversary, PrepareBatchKeys, adversarial, make_trainer
from ssmctb_monai.handlers import IntervalValidation, TrainingCheckpoint, TrainingProgress
from ssmctb_monai.inferers import AutocastInferer

BATCHES = [{"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))} for seed in range(3)]


class Predictor(nn.Sequential):
    """Of the first channel from the others."""

    def forward(self, x):
        return super().forward(x[:, 1:])


class FirstError(nn.Module):
    """Task loss of the predicted channel."""

    def forward(self, prediction, target):
        error = (prediction - target[:, :1]).square().mean()
        self.parts = {"task": error.detach()}
        return error


def parts_of_a_training(adversarial=True):
    torch.manual_seed(0)
    network, discriminator = Predictor(nn.Conv2d(2, 1, 3, padding=1)), PatchDiscriminator(2, 2, 1, num_layers_d=1)
    adversary = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), 0.01), weight=0.5)
    return network, torch.optim.Adam(network.parameters(), 0.1), adversary if adversarial else None


def trainer_of(network, optimizer, adversary, max_epochs=1, inferer=None):
    return make_trainer(
        network,
        optimizer,
        FirstError(),
        torch.device("cpu"),
        inferer or SimpleInferer(),
        adversary,
        max_epochs=max_epochs,
        train_data_loader=BATCHES,
        prepare_batch=PrepareBatchKeys("image", "image"),
        decollate=False,
    )


def assert_equal(one, other):
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_losses_by_hand():
    adversary = parts_of_a_training()[2]
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 0.5])
    ignored = torch.full((3,), 9.0)
    expected = ((real.sigmoid() - 1) ** 2).mean() / 2 + (fake.sigmoid() ** 2).mean() / 2
    torch.testing.assert_close(adversary.discriminator_loss([ignored, real], [ignored, fake]), expected)
    expected = 0.5 * ((fake.sigmoid() - 1) ** 2).mean() / 2
    torch.testing.assert_close(adversary.network_loss([ignored, fake]), expected)


def test_steps_by_hand():
    """The network's step first, then that of the discriminator, on the slice alone."""
    network, optimizer, adversary = parts_of_a_training()
    own_network, own_optimizer, own = parts_of_a_training()
    trainer = trainer_of(network, optimizer, adversary)
    trainer.run()
    for batch in BATCHES:
        run = batch["image"]
        fake = own_network(run)
        task, against = (fake - run[:, :1]).square().mean(), own.network_loss(own.discriminator(fake))
        own_optimizer.zero_grad()
        (task + against).backward()
        own_optimizer.step()
        own.discriminator.zero_grad()
        loss = own.discriminator_loss(own.discriminator(run[:, :1]), own.discriminator(fake.detach()))
        loss.backward()
        own.optimizer.step()
    assert_equal(network, own_network)
    assert_equal(adversary.discriminator, own.discriminator)
    output = trainer.state.output
    torch.testing.assert_close(output["loss"], (task + against).detach())
    torch.testing.assert_close(output["parts"], {"adversarial": against.detach(), "discriminator": loss.detach()})


def test_no_adversary():
    network, optimizer, adversary = parts_of_a_training(adversarial=False)
    trainer = trainer_of(network, optimizer, adversary)
    assert type(trainer) is SupervisedTrainer
    own, own_optimizer, _ = parts_of_a_training()
    trainer.run()
    for batch in BATCHES:
        own_optimizer.zero_grad()
        FirstError()(own(batch["image"]), batch["image"]).backward()
        own_optimizer.step()
    assert_equal(network, own)


def test_outputs_that_are_no_image():
    class Both(Predictor):
        def forward(self, x):
            return super().forward(x), x

    _, optimizer, adversary = parts_of_a_training()
    trainer = trainer_of(Both(nn.Conv2d(2, 1, 3, padding=1)), optimizer, adversary)
    trainer.state.recon_loss_function = lambda prediction, target: (prediction[0] - target[:, :1]).square().mean()
    with pytest.raises(ValueError, match=r"Both gives a tuple in training, .* take none \(in a bundle: --adversary"):
        trainer.run()


def test_mixed_precision():
    network, optimizer, adversary = parts_of_a_training()
    before = copy.deepcopy(network.state_dict())
    trainer = trainer_of(network, optimizer, adversary, inferer=AutocastInferer(SimpleInferer(), amp=True))
    trainer.run()
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert any((before[name] != value).any() for name, value in network.state_dict().items())
    assert trainer.state.output["loss"].isfinite()


def test_resumes_as_if_unbroken_and_is_logged(tmp_path):
    def run(folder, max_epochs, resume=False):
        network, optimizer, adversary = parts_of_a_training()
        trainer = trainer_of(network, optimizer, adversary, max_epochs)
        evaluator = SupervisedEvaluator("cpu", BATCHES[:1], network, prepare_batch=trainer.prepare_batch)
        progress = TrainingProgress(trainer.state.recon_loss_function)
        progress.attach(trainer)
        IntervalValidation(1, evaluator).attach(trainer)
        saved = {"network": network, "optimizer": optimizer, "adversary": adversary, "nothing": None}
        TrainingCheckpoint(folder, saved, network, evaluator, resume).attach(trainer)
        trainer.run()
        return network, adversary, progress

    run(tmp_path / "broken", 2)
    resumed, unbroken = run(tmp_path / "broken", 4, resume=True), run(tmp_path / "whole", 4)
    assert_equal(resumed[0], unbroken[0])
    assert_equal(resumed[1].discriminator, unbroken[1].discriminator)
    torch.testing.assert_close(resumed[1].state_dict(), unbroken[1].state_dict(), rtol=0, atol=0)
    assert resumed[2].means == unbroken[2].means
    assert list(resumed[2].means) == ["loss", "task", "adversarial", "discriminator"]
    saved = torch.load(tmp_path / "whole/training.pt", weights_only=True)
    assert saved.keys() >= {"network", "optimizer", "adversary", "trainer"}
    assert "nothing" not in saved


def test_processes_share_the_gradients_of_the_discriminator(monkeypatch):
    adversary = parts_of_a_training()[2]
    monkeypatch.setattr(adversarial.idist, "all_reduce", lambda tensor: tensor + 3 * tensor)
    monkeypatch.setattr(adversarial.idist, "get_world_size", lambda: 2)
    for parameter in adversary.discriminator.parameters():
        parameter.grad = torch.ones_like(parameter)
    adversary.optimizer.step()
    assert all((parameter.grad == 2).all() for parameter in adversary.discriminator.parameters())


def test_ill_weight():
    network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        Adversary(network, torch.optim.SGD(network.parameters()), weight=-1)
