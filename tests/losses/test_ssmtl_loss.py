"""Loss of the tasks on stacks of slices, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ssmctb_monai.losses import SSMTLLoss


def test_each_task_counts_the_samples_that_it_was_set_to():
    image = torch.zeros(3, 2, 2, 4)
    restored = torch.stack([torch.full((2, 2, 4), value) for value in (0.1, 5.0, 7.0)]).requires_grad_()
    hidden = torch.zeros(3, 1, 1, 4)
    hidden[0, ..., 1:3] = 1
    logits = torch.zeros(3, 3, 2, 2)
    logits[1, 0] = 2.0
    logits[2, 0, 0] = -1.0
    answers = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [0, -1, -1]])
    loss = SSMTLLoss()
    total = loss((restored, logits), (image, hidden, answers))
    first = math.log1p(math.exp(-2))
    second = (math.log1p(math.exp(-1)) + math.log(2)) / 2
    assert float(loss.parts["restoration"]) == pytest.approx(0.1)
    assert float(loss.parts["reversed"]) == pytest.approx((first + second) / 2)
    assert list(loss.parts) == ["restoration", "reversed", "skipped", "permuted"]
    assert float(loss.parts["skipped"]) == float(loss.parts["permuted"]) == 0
    assert float(total.detach()) == pytest.approx(0.1 + (first + second) / 2)
    total.backward()
    assert (restored.grad != 0).nonzero().unique(dim=0)[:, 3].unique().tolist() == [1, 2]


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"The restored image has shape \(1, 1, 4\), the image \(1, 1, 5\)"):
        SSMTLLoss()(
            (torch.zeros(1, 1, 4), torch.zeros(1, 3, 2)), (torch.zeros(1, 1, 5), torch.zeros(1), torch.zeros(1, 3))
        )
