"""Anomalies of the literature: what each keeps and changes."""

from __future__ import annotations

import pytest
import torch
from anomaly_checks import images

from ssmctb_monai.transforms import (
    BinaryLabel,
    PoissonBlend,
    RandCutPaste,
    RandCutPasteClassd,
    RandForeignPatch,
    RandNaturalAnomaly,
    ScarShape,
)

KINDS = [
    RandNaturalAnomaly,
    lambda dims: RandNaturalAnomaly(dims, gradients="mixed", label=BinaryLabel(), ellipsoids=5),
    RandForeignPatch,
    lambda dims: RandForeignPatch(dims, poisson=True),
    RandCutPaste,
]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_every_anomaly_keeps(kind, spatial_dims):
    batch, brain = images(spatial_dims, batch=6)
    batch = (0.4 * batch + 0.3) * brain
    corrupted, clean, label = kind(spatial_dims).set_random_state(1)(batch, brain)
    assert torch.equal(clean, batch)
    assert not corrupted[(brain == 0).expand_as(batch)].any()
    assert not label[brain == 0].any()
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert 0 <= label.min() < label.max() <= 1
    assert (corrupted != clean).flatten(1).any(1).all()
    assert not label[(corrupted == clean).all(1, keepdim=True)].any()


def test_natural_anomalies_leave_no_offset():
    """A smooth source of another brightness changes nothing, as only gradients count."""
    image, source = torch.full((1, 1, 40, 40), 0.3), torch.full((1, 1, 40, 40), 0.8)
    corrupted, _, label = RandNaturalAnomaly(2).set_random_state(0)(image[0], donors=source)
    torch.testing.assert_close(corrupted, image[0])
    assert not label.any()


def test_gradients_factor_and_labels_of_natural_anomalies():
    batch, brain = images(2, batch=8)

    def made(**arguments):
        return RandNaturalAnomaly(2, count=(1, 1), **arguments).set_random_state(0)(batch, brain)

    (source, clean, label), (mixed, _, _), (half, _, _) = made(), made(gradients="mixed"), made(factor=(0.5, 0.5))
    binary = made(label=BinaryLabel())[2]
    assert (source - mixed).abs().max() > 0.05
    whole = (source > 0) & (source < 1)
    torch.testing.assert_close((half - clean)[whole], ((source - clean) / 2)[whole], atol=1e-5, rtol=0)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert len(label.unique()) > 10
    assert ((label > 0) <= (binary > 0)).float().mean() > 0.95


def test_foreign_patches_are_of_the_same_place_and_labelled_by_their_factor():
    image, donor = images(2, batch=2)[0]
    corrupted, _, label = RandForeignPatch(2).set_random_state(0)(image, donors=donor[None])
    factor = float(label.max())
    assert 0.05 <= factor <= 0.95
    torch.testing.assert_close(corrupted, torch.where(label > 0, image + factor * (donor - image), image))
    with pytest.raises(ValueError, match="places are the same"):
        RandForeignPatch(2)(image, donors=donor[None, :, 1:])
    binary = RandForeignPatch(2, label=BinaryLabel()).set_random_state(0)(image, donors=donor[None])[2]
    assert torch.equal(binary, (label > 0).float())
    poisson = RandForeignPatch(2, poisson=True).set_random_state(0)
    assert isinstance(poisson.blend, PoissonBlend)
    assert poisson.blend.gradients == "interpolated"
    assert torch.equal(poisson(image, donors=donor[None])[2] > 0, label > 0)


def test_cut_paste_takes_from_the_image_itself():
    image = torch.where(torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.5, 0.4, 0.6)
    corrupted, _, mask = RandCutPaste(2, mode="patch").set_random_state(0)(image)
    values = corrupted[mask > 0].unique()
    assert len(values) == 2  # brightness and contrast have changed, but no other value is new
    assert (values / 0.5 - 1).abs().max() <= 0.2 * 1.1 + 0.1
    assert not torch.isin(values, torch.tensor([0.4, 0.6])).any()
    modes = {mode: RandCutPaste(2, mode=mode).shapes for mode in ("patch", "scar", "union")}
    assert [len(shapes) for shapes in modes.values()] == [1, 1, 2]
    assert isinstance(modes["scar"][0], ScarShape)


def test_classes_of_cut_paste():
    image, brain = (x[0] for x in images(2, batch=1))
    transform = RandCutPasteClassd(spatial_dims=2).set_random_state(0)
    items = [transform({"image": image * brain, "brain": brain}) for _ in range(90)]
    classes = torch.stack([item["anomaly_class"] for item in items])
    assert classes.bincount().tolist() == pytest.approx([30, 30, 30], abs=12)
    changed = torch.tensor([int((item["image"] != item["image_clean"]).any(0).sum()) for item in items])
    assert not changed[classes == 0].any()
    assert changed[classes > 0].all()
    assert changed[classes == 1].float().mean() > 2 * changed[classes == 2].float().mean()
    assert all(torch.equal(item["image_clean"], image * brain) for item in items)
    again = RandCutPasteClassd(spatial_dims=2).set_random_state(0)({"image": image * brain, "brain": brain})
    assert torch.equal(again["image"], items[0]["image"])
    with pytest.raises(ValueError, match="one key"):
        RandCutPasteClassd(2, ["a", "b"])


def test_number_of_natural_anomalies_is_binomial():
    transform = RandNaturalAnomaly(2, count=(1, 3)).set_random_state(0)
    drawn = torch.tensor([transform._number() for _ in range(2000)])
    shares = torch.bincount(drawn) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0.5, 0.25]), atol=0.03, rtol=0)


def test_without_brain_there_is_no_class_of_an_anomaly():
    image = torch.rand(1, 32, 32)
    transform = RandCutPasteClassd(2).set_random_state(0)
    items = [transform({"image": image, "brain": torch.zeros(1, 32, 32)}) for _ in range(10)]
    assert all(item["anomaly_class"] == 0 and torch.equal(item["image"], image) for item in items)
    with pytest.raises(ValueError, match=r"one image of shape \(channels, …\), got shape \(4, 1, 32, 32\)"):
        transform({"image": torch.rand(4, 1, 32, 32)})


def test_ill_arguments():
    with pytest.raises(ValueError, match="gradients"):
        RandNaturalAnomaly(2, gradients="interpolated")
    with pytest.raises(ValueError, match="mode"):
        RandCutPaste(2, mode="all")
