"""Classifier of CutPaste and the density of its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, named_blocks
from ssmctb_monai.networks.nets import CutPasteClassifier
from ssmctb_monai.networks.nets.cutpaste_classifier import ledoit_wolf_covariance


def classifier(spatial_dims=2, in_channels=1, **arguments):
    torch.manual_seed(0)
    return CutPasteClassifier(spatial_dims, in_channels, **{"block": "none", "encoder_width": 4, **arguments})


@pytest.mark.parametrize(("count", "features"), [(10, 30), (200, 8)])
def test_covariance_of_scikit_learn(count, features):
    samples = np.random.default_rng(0).normal(size=(count, features)) @ np.diag(np.arange(1, features + 1))
    expected = LedoitWolf().fit(samples).covariance_
    np.testing.assert_allclose(ledoit_wolf_covariance(torch.from_numpy(samples)), expected, rtol=1e-9)


def test_scores_of_scikit_learn():
    network = classifier().eval()
    normal, tested = torch.rand(40, 1, 32, 32), 0.5 * torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        embeddings, others = network.embed(normal), network.embed(tested)
        network.fit([(normal, normal)])
        scores = network(tested)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(40))
    reference = LedoitWolf().fit(embeddings.double().numpy())
    distances = torch.from_numpy(reference.mahalanobis(others.double().numpy())).sqrt()
    middle = torch.from_numpy(reference.mahalanobis(embeddings.double().numpy())).sqrt().median()
    expected = (distances / (distances + middle)).float()
    torch.testing.assert_close(scores, expected.reshape(5, 1, 1, 1).expand(5, 1, 32, 32), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert float(network(normal).flatten(1)[:, 0].median()) == pytest.approx(0.5, abs=0.02)
        other = classifier().eval()
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(tested), scores)  # the density is part of the state


def test_distances_are_as_precise_under_autocast():
    """Features that depend on each other, so that the precision has large entries."""
    network = classifier()
    features = network.mean.shape[0]
    random = np.random.default_rng(0)
    mixed = random.normal(size=(200, 4)) @ random.normal(size=(4, features))
    mixed += 1e-2 * random.normal(size=(200, features))
    samples = torch.from_numpy(mixed).float()
    network.mean.copy_(samples.mean(0))
    network.precision.copy_(torch.linalg.inv(ledoit_wolf_covariance(samples.double())))
    with torch.autocast("cpu", torch.bfloat16):
        found = network.distance(samples)
    torch.testing.assert_close(found, network.distance(samples), rtol=1e-5, atol=0)


def test_before_the_density_is_fitted():
    network = classifier().eval()
    x = torch.rand(3, 1, 40, 30)
    with torch.no_grad():
        expected = 1 - network.training_output(x).softmax(1)[:, 0]
        torch.testing.assert_close(network(x), expected.reshape(3, 1, 1, 1).expand(3, 1, 40, 30))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("block", "kind"), [("sspcab", SSPCAB), ("ssmctb", SSMCTB)])
def test_block_in_place_of_the_penultimate_convolution(spatial_dims, block, kind):
    network = classifier(spatial_dims, 2, block=block)
    ((name, found),) = named_blocks(network).items()
    assert (name, type(found)) == ("encoder.7.1.conv1.block", kind)
    logits = network.train()(torch.rand(2, 2, *[48] * spatial_dims))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_head():
    linear = [part for part in classifier(num_classes=2, head_layers=2).head if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [(32, 32), (32, 32), (32, 128), (128, 2)]


def test_density_is_that_of_all_batches_in_evaluation_mode():
    network = classifier().train()
    batches = [(torch.rand(4, 1, 32, 32), torch.ones(4, 1, 32, 32)) for _ in range(3)]
    network.fit(batches)
    assert network.training
    with torch.no_grad():
        embeddings = network.eval().embed(torch.cat([image for image, _ in batches]))
    torch.testing.assert_close(network.mean, embeddings.mean(0))


@pytest.mark.parametrize(
    ("arguments", "message"), [({"num_classes": 1}, "num_classes"), ({"head_layers": -1}, "head_l")]
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(**arguments)


@pytest.mark.parametrize("images", [torch.rand(1, 1, 32, 32), torch.ones(4, 1, 32, 32)], ids=["one", "all the same"])
def test_no_density(images):
    with pytest.raises(ValueError, match="at least two images that differ"):
        classifier().fit([(images, images)])
