"""What trainers take from a batch."""

from __future__ import annotations

import pytest
import torch

from ssmctb_monai.engines import PrepareBatchKeys

KEYS = ("image", "image_clean", "anomaly_mask")


def make_batch():
    return {key: torch.full((2, 1, 4, 4), float(index)) for index, key in enumerate(KEYS)} | {"case_id": ["a", "b"]}


def values(tensors):
    if isinstance(tensors, tuple):
        return tuple(values(tensor) for tensor in tensors)
    assert tensors.shape == (2, 1, 4, 4)
    return tensors.unique().item()


@pytest.mark.parametrize(
    ("inputs", "targets", "expected"),
    [
        ("image", "image", (0, 0)),
        ("image_clean", "anomaly_mask", (1, 2)),
        ("image", ["image_clean", "anomaly_mask"], (0, (1, 2))),
        (("anomaly_mask", "image"), ["image_clean"], ((2, 0), (1,))),
    ],
)
def test_a_key_gives_a_tensor_and_several_a_tuple(inputs, targets, expected):
    assert values(PrepareBatchKeys(inputs, targets)(make_batch(), "cpu")) == expected


def test_everything_goes_to_the_device_and_type():
    prepare = PrepareBatchKeys("image", ["image_clean", "anomaly_mask"])
    image, targets = prepare(make_batch(), torch.device("meta"), non_blocking=True, dtype=torch.float64)
    assert {(tensor.device.type, tensor.dtype) for tensor in (image, *targets)} == {("meta", torch.float64)}


@pytest.mark.parametrize("key", KEYS)
def test_missing_key(key):
    batch = make_batch()
    del batch[key]
    with pytest.raises(KeyError, match=f"no '{key}', but.*case_id.*name its keys in prepare_batch"):
        PrepareBatchKeys("image", ["image_clean", "anomaly_mask"])(batch, "cpu")
