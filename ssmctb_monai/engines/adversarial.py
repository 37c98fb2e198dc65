"""Training against a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import AdversarialTrainer, SupervisedTrainer, Trainer
from monai.inferers import Inferer
from monai.losses import PatchAdversarialLoss
from monai.utils import CommonKeys
from monai.utils.enums import AdversarialIterationEvents, AdversarialKeys
from torch import Tensor, nn
from torch.optim import Optimizer


class Adversary:
    """Discriminator that a network is trained against, as least-squares GANs are.

    Mao et al., *Least squares generative adversarial networks*, ICCV 2017, https://arxiv.org/abs/1611.04076, on patches
    after Isola et al., CVPR 2017, https://arxiv.org/abs/1611.07004: outputs of a sigmoid are drawn to 1 for real images
    and to 0 for those of the network, by half of the squared error; the network draws them to 1. It has a state dict
    of all that training changes.

    Args:
        discriminator: MONAI's ``PatchDiscriminator``, or a network that gives a list of tensors, the logits last.
        optimizer: optimizer of its parameters. On several processes gradients are averaged before each step.
        weight: weight of the network's own adversarial loss.

    Raises:
        ValueError: when ``weight`` is negative.

    Example:
        >>> discriminator = PatchDiscriminator(spatial_dims=2, channels=16, in_channels=1)
        >>> adversary = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), lr=1e-4))
    """

    def __init__(self, discriminator: nn.Module, optimizer: Optimizer, weight: float = 0.05) -> None:
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}.")
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.weight = weight
        self._criterion = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
        optimizer.register_step_pre_hook(lambda *arguments: self._average_gradients())

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training goes on with."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what an earlier run left.

        Args:
            state: what :meth:`state_dict` returned.
        """
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])

    def network_loss(self, logits: list[Tensor]) -> Tensor:
        """Computes the weighted loss of the network.

        Args:
            logits: what the discriminator gives for images of the network.

        Returns:
            Scalar in the graph.
        """
        return self.weight * self._half_squared_error(logits, True, for_discriminator=False)

    def discriminator_loss(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """Computes the loss of the discriminator.

        Args:
            real: what it gives for real images.
            fake: what it gives for images of the network.

        Returns:
            Scalar in the graph.
        """
        return self._half_squared_error(real, True) + self._half_squared_error(fake, False)

    def _half_squared_error(self, logits: list[Tensor], is_real: bool, for_discriminator: bool = True) -> Tensor:
        return 0.5 * self._criterion(logits[-1].float().sigmoid(), is_real, for_discriminator)

    def _average_gradients(self) -> None:
        for parameter in self.discriminator.parameters():
            if parameter.grad is not None:
                parameter.grad = idist.all_reduce(parameter.grad) / idist.get_world_size()


def make_trainer(
    network: nn.Module,
    optimizer: Optimizer,
    loss_function: nn.Module,
    device: torch.device,
    inferer: Inferer,
    adversary: Adversary | None = None,
    **arguments: Any,
) -> Trainer:
    """Makes the trainer of a network: MONAI's ``SupervisedTrainer``, or its ``AdversarialTrainer``.

    Args:
        network: network.
        optimizer: optimizer of its parameters.
        loss_function: loss of its output, called with it and the target.
        device: device of the network.
        inferer: inferer that calls the network.
        adversary: what it is trained against, besides the loss; ``None`` for nothing. The network's output is an image,
            and the first channels of the target are the real one.
        arguments: further arguments of the trainers, by name.

    Returns:
        The trainer; its output has the ``loss``, and ``parts`` of it where there is an adversary. With one it refuses
        a network whose output is no image, once it runs.

    Example:
        >>> trainer = make_trainer(network, optimizer, loss, device, SimpleInferer(), adversary, max_epochs=30, …)
    """
    common = {"device": device, **arguments}
    if adversary is None:
        given = {"network": network, "optimizer": optimizer, "loss_function": loss_function, "inferer": inferer}
        return SupervisedTrainer(**common, **given)
    return _AdversarialTrainer(
        **common,
        g_network=network,
        g_optimizer=optimizer,
        g_loss_function=adversary.network_loss,
        g_inferer=inferer,
        recon_loss_function=loss_function,
        d_network=adversary.discriminator.to(device),
        d_optimizer=adversary.optimizer,
        d_loss_function=adversary.discriminator_loss,
        d_inferer=inferer,
    )


class _AdversarialTrainer(AdversarialTrainer):
    """MONAI's trainer with the output and the state dict of its ``SupervisedTrainer``, and the target as real image."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._state_dict_user_keys.clear()  # whole networks, which TrainingCheckpoint saves by their state dicts
        self.add_event_handler(AdversarialIterationEvents.GENERATOR_FORWARD_COMPLETED, self._set_images)

    def _set_images(self) -> None:
        output = self.state.output
        if not isinstance(output[AdversarialKeys.FAKES], Tensor):
            raise ValueError(
                f"{type(self.state.g_network).__name__} gives a {type(output[AdversarialKeys.FAKES]).__name__} in "
                "training, but an adversary is of networks whose output is an image: take none (in a bundle: "
                "--adversary '$None')."
            )
        output[AdversarialKeys.FAKES] = output[AdversarialKeys.FAKES].float()
        channels = output[AdversarialKeys.FAKES].shape[1]
        output[AdversarialKeys.REALS] = output[CommonKeys.LABEL][:, :channels]

    def _iteration(self, engine: AdversarialTrainer, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        output = super()._iteration(engine, batchdata)
        adversarial = output[AdversarialKeys.GENERATOR_LOSS].detach()
        output["parts"] = {
            "adversarial": adversarial,
            "discriminator": output[AdversarialKeys.DISCRIMINATOR_LOSS].detach(),
        }
        output[CommonKeys.LOSS] = output[AdversarialKeys.RECONSTRUCTION_LOSS].detach() + adversarial
        return output
