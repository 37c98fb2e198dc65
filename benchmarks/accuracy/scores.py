"""What to score voxels by instead of a network's map."""

from __future__ import annotations

from torch import Tensor, nn

from ssmctb_monai.networks.blocks import block_score, named_blocks

FIRST = "first"  # the network on the first modality alone
SCORES = ("model", FIRST, "image", "block", "block:reconstructive", "block:discriminative")


def method_name(score: str) -> str:
    """Returns what metrics call a score, whichever sub-network it is of.

    Args:
        score: one of `SCORES`.

    Example:
        >>> method_name("block:reconstructive")
        'block'
    """
    return "model" if score == FIRST else score.partition(":")[0]


def scoring_network(network: nn.Module, score: str) -> nn.Module:
    """Puts another score in the place of a network's map.

    Args:
        network: trained network in evaluation mode.
        score: ``"image"`` for the first modality of its input, ``"block"`` for the error of its blocks,
            ``"block:SUBNETWORK"`` for that of the blocks in a sub-network.

    Returns:
        A network that returns the score.

    Example:
        >>> scoring_network(network, "image")(torch.rand(1, 2, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """
    return FirstChannel() if score == "image" else BlockScore(network, score.partition(":")[2])


class FirstChannel(nn.Module):
    """Scores every voxel by its intensity: what a detector has to beat, as it is scaled and smoothed alike."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes the first modality.

        Args:
            x: image of shape (batch, channels, height, width[, depth]), in [0, 1].

        Returns:
            Score in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        return x[:, :1]


class BlockScore(nn.Module):
    """Scores every voxel by how badly the blocks of a trained network reproduce it, whatever the network returns.

    Args:
        network: network in evaluation mode that works at the size of its input, as DRAEM does for multiples of 32.
        where: name of the sub-network whose blocks count, such as ``"reconstructive"``; all of the network by default.

    Raises:
        ValueError: when there is no block.

    Example:
        >>> BlockScore(DRAEM(spatial_dims=2, block="ssmctb"), "reconstructive").eval()(torch.rand(1, 1, 64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """

    def __init__(self, network: nn.Module, where: str = "") -> None:
        super().__init__()
        self.network = network
        self.where = where
        if not named_blocks(network.get_submodule(where)):
            raise ValueError(f"There is no block in {where or type(network).__name__}: take a row that has one.")

    def forward(self, x: Tensor) -> Tensor:
        """Finds the error of the blocks, see :func:`~ssmctb_monai.networks.blocks.block_score`.

        Args:
            x: image of shape (batch, channels, height, width[, depth]).

        Returns:
            Score in [0, 1), shape (batch, 1, height, width[, depth]).
        """
        return block_score(self.network, x, self.where)
