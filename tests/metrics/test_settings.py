"""What an evaluation may be asked to count."""

from __future__ import annotations

import dataclasses

import pytest

from ssmctb_monai.metrics import EvaluationSettings


def test_defaults():
    assert dataclasses.asdict(EvaluationSettings()) == {
        "slice_score": "top_k_mean",
        "top_k": 20,
        "slices": "brain",
        "slab_depth": 32,
        "min_lesion_size": 10,
        "box_levels": 0,
        "resamples": 1000,
        "seed": 0,
    }


@pytest.mark.parametrize("name", ["top_k", "slab_depth", "min_lesion_size", "resamples"])
def test_sizes_below_1(name):
    assert getattr(EvaluationSettings(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        EvaluationSettings(**{name: 0})


@pytest.mark.parametrize("name", ["top_k", "min_lesion_size", "box_levels", "resamples", "seed"])
def test_numbers_that_are_not_whole(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got 2.5"):
        EvaluationSettings(**{name: 2.5})


@pytest.mark.parametrize(
    ("name", "choices"), [("slice_score", ["top_k_mean", "max", "filtered_max", "mean"]), ("slices", ["brain", "all"])]
)
def test_choices(name, choices):
    for choice in choices:
        assert getattr(EvaluationSettings(**{name: choice}), name) == choice
    with pytest.raises(ValueError, match=f"{name} must be one of .*{choices[-1]}.*got 'median'"):
        EvaluationSettings(**{name: "median"})


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EvaluationSettings().top_k = 3
