"""What trainers take from a batch."""

from __future__ import annotations

import pytest
import torch

from ssmctb_monai.engines import PrepareBatchAnomaly, PrepareBatchReconstruction


def make_batch(keys=("image", "image_clean", "anomaly_mask")):
    return {key: torch.full((2, 1, 4, 4), float(index)) for index, key in enumerate(keys)} | {"case_id": ["a", "b"]}


def test_input_and_targets():
    image, (clean, mask) = PrepareBatchAnomaly()(make_batch(), "cpu")
    assert [tensor.unique().tolist() for tensor in (image, clean, mask)] == [[0], [1], [2]]


def test_other_keys():
    image, (clean, mask) = PrepareBatchAnomaly("x", "y", "z")(make_batch(("z", "y", "x")), "cpu")
    assert [tensor.unique().tolist() for tensor in (image, clean, mask)] == [[2], [1], [0]]


def test_everything_goes_to_the_device():
    image, targets = PrepareBatchAnomaly()(make_batch(), torch.device("meta"), non_blocking=True)
    assert {tensor.device.type for tensor in (image, *targets)} == {"meta"}


def test_further_arguments_of_to():
    image, targets = PrepareBatchAnomaly()(make_batch(), "cpu", dtype=torch.float64)
    assert {tensor.dtype for tensor in (image, *targets)} == {torch.float64}


@pytest.mark.parametrize("key", ["image", "image_clean", "anomaly_mask"])
def test_missing_key(key):
    batch = make_batch()
    del batch[key]
    with pytest.raises(KeyError, match=key):
        PrepareBatchAnomaly()(batch, "cpu")


# ------------------------------------------------------------------------------------------------------ reconstruction


def test_image_is_its_own_target():
    image, target = PrepareBatchReconstruction()(make_batch(), "cpu")
    assert [tensor.unique().tolist() for tensor in (image, target)] == [[0], [0]]


def test_other_target():
    image, target = PrepareBatchReconstruction("image", target_key="image_clean")(make_batch(), "cpu")
    assert [tensor.unique().tolist() for tensor in (image, target)] == [[0], [1]]
    image, target = PrepareBatchReconstruction("anomaly_mask", "image")(make_batch(), "cpu")
    assert [tensor.unique().tolist() for tensor in (image, target)] == [[2], [0]]


def test_reconstruction_goes_to_the_device():
    pair = PrepareBatchReconstruction()(make_batch(), torch.device("meta"), non_blocking=True, dtype=torch.float64)
    assert {(tensor.device.type, tensor.dtype) for tensor in pair} == {("meta", torch.float64)}


def test_missing_target():
    with pytest.raises(KeyError, match="clean"):
        PrepareBatchReconstruction(target_key="clean")(make_batch(), "cpu")
