"""Scores of the blocks within a network; `ReconstructionDetector` has the tests of their mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB, block_score
from ssmctb_monai.networks.nets import DRAEM


@pytest.mark.parametrize("where", ["reconstructive", "discriminative"])
def test_blocks_of_a_sub_network(where):
    torch.manual_seed(0)
    network = DRAEM(2, reconstructive_width=2, discriminative_width=2, block=lambda n: SSMCTB(2, n, token_dim=4)).eval()
    (block,) = (module for module in network.get_submodule(where).modules() if isinstance(module, SSMCTB))
    inputs = []
    block.register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    x = torch.rand(1, 1, 32, 64)
    scores = block_score(network, x, where)
    error = block.anomaly_map(inputs[0])
    torch.testing.assert_close(scores, error / (1 + error))
    assert not torch.equal(scores, block_score(network, x))


def test_no_block_ran():
    with pytest.raises(ValueError, match="No block ran within Conv2d"):
        block_score(nn.Conv2d(1, 1, 1), torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="No block ran within 0:"):
        block_score(nn.Sequential(nn.Identity(), SSMCTB(2, 1)), torch.rand(1, 1, 4, 4), where="0")
