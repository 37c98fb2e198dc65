"""Loss of a predicted image, by golden values and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssmctb_monai.losses import PredictionLoss

GOLDEN = np.load(Path(__file__).parents[1] / "data/golden/video_terms.npz")


@pytest.mark.parametrize("channels", [1, 3])
def test_golden_terms(channels):
    prediction, frame = (torch.from_numpy(GOLDEN[f"hf2/c{channels}/{name}"]) for name in ("predicted", "frame"))
    loss = PredictionLoss(spatial_dims=2)
    total = loss(prediction.requires_grad_(), frame)
    assert float(loss.parts["intensity"]) == pytest.approx(float(GOLDEN[f"hf2/c{channels}/intensity_loss"]), rel=1e-5)
    expected = float(GOLDEN[f"ffp/c{channels}/gradient_loss_by_formula"])
    assert float(loss.parts["gradient"]) == pytest.approx(expected, rel=1e-5)
    assert float(total) == pytest.approx(sum(map(float, loss.parts.values())), rel=1e-6)
    total.backward()
    assert prediction.grad.isfinite().all()


def test_by_hand_in_3d_and_of_the_slice_alone():
    prediction, run = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    run[:, 1:] = torch.rand(1, 2, 2, 2, 2)
    run[0, 0, 1, 0, 0] = 2.0
    loss = PredictionLoss(spatial_dims=3)
    assert float(loss(prediction, run)) == pytest.approx(4 / 8 + (2 + 2) / 8 + 2 / 8 + 2 / 8)
    assert list(loss.parts) == ["intensity", "gradient"]


@pytest.mark.parametrize(("prediction", "target"), [((1, 1, 4, 4), (1, 1, 4, 5)), ((1, 2, 4, 4), (1, 1, 4, 4))])
def test_shapes_that_do_not_fit(prediction, target):
    with pytest.raises(ValueError, match="Expected a prediction and a target of one size with 2 spatial dimensions"):
        PredictionLoss(spatial_dims=2)(torch.rand(prediction), torch.rand(target))
