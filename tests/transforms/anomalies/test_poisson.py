"""Poisson blending: exact, as other implementations, inside the brain only."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from anomaly_checks import images
from scipy.ndimage import binary_erosion
from scipy.sparse import diags, eye, kron
from scipy.sparse.linalg import spsolve

from ssmctb_monai.transforms import PoissonBlend, poisson_blend
from ssmctb_monai.transforms.anomalies.poisson import solve_poisson

GOLDEN = Path(__file__).with_name("golden.npz")


def golden(case):
    with np.load(GOLDEN) as content:
        found = {key.split("/")[1]: content[key] for key in content if key.startswith(f"{case}/")}
    return {key: torch.from_numpy(value) for key, value in found.items()}


def pair(*shape, channels=2, seed=0, dtype=torch.float64):
    """An image, another one, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, channels, *shape, generator=generator, dtype=dtype)
    return one, other, torch.rand(shape, generator=generator) < 0.7


# ------------------------------------------------------------------------------------------------------------- equation


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((9, 14), 1.0), ((9, 14), (1.0, 2.5)), ((6, 5, 8), 1.0), ((6, 1, 8), (2.0, 1.0, 0.5))],
    ids=str,
)
def test_solution_is_that_of_a_sparse_direct_solver(shape, spacing):
    steps = np.broadcast_to(spacing, len(shape))
    laplacian = 0
    for axis, step in enumerate(steps):
        second = diags([1, -2, 1], [-1, 0, 1], shape=(shape[axis],) * 2) / step**2
        factors = [second if other == axis else eye(size) for other, size in enumerate(shape)]
        laplacian = laplacian + (factors[0] if len(factors) == 1 else _product(factors))
    right = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.stack([spsolve(laplacian.tocsc(), channel.numpy().ravel()).reshape(shape) for channel in right])
    np.testing.assert_allclose(solve_poisson(right, spacing), expected, atol=1e-12)
    np.testing.assert_allclose(solve_poisson(right.float(), spacing), expected, atol=1e-5)


def _product(matrices):
    result = matrices[0]
    for matrix in matrices[1:]:
        result = kron(result, matrix)
    return result


@pytest.mark.parametrize(("gradients", "shape"), itertools.product(["source", "mixed"], [(12, 9), (7, 8, 9)]))
def test_source_with_an_offset_is_the_identity(gradients, shape):
    image, _, mask = pair(*shape)
    offset = torch.tensor([0.3, -2.0]).reshape(2, *[1] * len(shape))
    torch.testing.assert_close(poisson_blend(image, image + offset, mask, gradients), image, atol=1e-12, rtol=0)


def test_gradients_of_the_result_are_those_of_the_source_where_they_can():
    """Along a line each step is what is wanted, up to the same correction of all steps, as both ends are fixed."""
    line = torch.tensor([0.0, 1.0, 3.0, 2.0, 4.0]).double()[None, :, None]
    source = line.expand(1, 5, 121)  # columns that are all the same, and the sides far away
    steps = poisson_blend(torch.zeros_like(source), source, torch.ones(5, 121))[0, :, 60].diff()
    torch.testing.assert_close(steps, torch.tensor([0.0, 1.0, -2.0, 1.0]).double(), atol=1e-6, rtol=0)


def test_larger_gradients_by_hand():
    """One voxel that may change: its four neighbours ask for -4 u = f₁ - f₀ with the changes f of its two steps."""
    image, source = (torch.tensor(row).double().expand(1, 3, 3) for row in ([0.0, 0.1, 1.0], [5.0, 9.0, 4.0]))

    def change(gradients, factor):
        return float(poisson_blend(image, source, torch.ones(3, 3), gradients, factor)[0, 1, 1]) - 0.1

    assert change("source", 1.0) == pytest.approx(-((-5 - 0.9) - (4 - 0.1)) / 4)
    assert change("source", 0.5) == pytest.approx(-0.5 * ((-5 - 0.9) - (4 - 0.1)) / 4)
    assert change("mixed", 1.0) == pytest.approx(change("source", 1.0))  # whose steps are both the larger ones
    # 0.1 of the source's steps are 0.4 and -0.5, 0.9 of the image's 0.09 and 0.81
    assert change("interpolated", 0.1) == pytest.approx(-((0.81 - 0.9) - (0.4 - 0.1)) / 4)


# --------------------------------------------------------------------------------------------------------------- golden


def test_volume_of_another_solver():
    case = golden("volume")
    result = poisson_blend(case["destination"][None], case["source"][None], case["mask"])[0]
    inner = (slice(1, -1),) * 3
    torch.testing.assert_close(result[inner], case["solution"][inner], atol=1e-5, rtol=0)
    frame = torch.ones_like(case["mask"])
    frame[inner] = False
    assert torch.equal(result[frame], case["destination"][frame])


@pytest.mark.parametrize("name", ["rectangle_normal", "ellipses_mixed", "grey_clipped"])
def test_opencv_seamless_clone(name):
    """With what OpenCV does otherwise: a mask smaller by 3 pixels, another mixture, 8 bits that are cut off."""
    case = golden(name)
    image, source = (case[key].double().movedim(-1, 0) for key in ("destination", "source"))
    mask = torch.from_numpy(binary_erosion(case["mask"].numpy(), np.ones((3, 3)), iterations=3))
    if name == "ellipses_mixed":
        steps = [[x.diff(dim=dim, append=x.narrow(dim, -1, 1)) for dim in (1, 2)] for x in (image, source)]
        chosen = mask & ((steps[1][1] - steps[1][0]).abs() > (steps[0][1] - steps[0][0]).abs())
        rows, columns = (torch.where(chosen, new - old, 0) for old, new in zip(*steps, strict=True))
        change = rows.diff(dim=1)[:, :-1, 1:-1] + columns.diff(dim=2)[:, 1:-1, :-1]
        found = image.clone()
        found[:, 1:-1, 1:-1] += solve_poisson(change)
    else:
        found = poisson_blend(image, source, mask)
    found, expected = found.clamp(0, 255), case["result"].movedim(-1, 0)
    assert (found - expected).aminmax()[0] >= -1e-4
    assert (found - expected).aminmax()[1] <= 1.001
    assert (found.float().floor() == expected).float().mean() >= 0.999


# ---------------------------------------------------------------------------------------------------------------- blend


def blended(spatial_dims, region, factor=1.0, **arguments):
    batch, brain = images(spatial_dims)
    inside = brain[0, 0] > 0
    image, source = batch[0] * inside, batch[1] + 0.5
    level = torch.where(region(inside), 1.0, -1.0)
    blend = PoissonBlend(factor=(factor, factor), **arguments)
    return image, inside, level, blend(image, source, level, inside)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_changes_inside_the_brain_and_the_box_around_the_anomaly_only(spatial_dims):
    def corner(inside):
        region = torch.zeros_like(inside)
        region[(slice(0, 9),) * spatial_dims] = True  # beyond the brain, from the image's border on
        return region

    image, inside, level, result = blended(spatial_dims, corner)
    changed = (result != image).any(0)
    assert changed[(level >= 0) & inside].all()
    assert not changed[~inside].any()
    assert not changed[(slice(9, None),) * spatial_dims].any()
    assert changed.sum() == ((level >= 0) & inside).sum()


def test_up_to_the_border_of_the_image():
    image, source, _ = pair(7, 8, dtype=torch.float32)
    everywhere = torch.ones(7, 8, dtype=torch.bool)
    result = PoissonBlend()(image, source, everywhere.float(), everywhere)
    wide = [torch.nn.functional.pad(x, [1] * 4) for x in (image, source)]
    inner = (slice(None), slice(1, -1), slice(1, -1))
    inside = torch.nn.functional.pad(everywhere, [1] * 4)
    torch.testing.assert_close(result, poisson_blend(*wide, inside, inside=inside)[inner])
    assert (result != image).any(0).all()


def test_nothing_crosses_the_border_of_the_brain():
    """An image that the source has with an offset stays as it is, also at the border, where both end."""
    batch, brain = images(3)
    inside = brain[0, 0] > 0
    image = batch[0] * inside
    for gradients in ("source", "mixed"):
        result = PoissonBlend(gradients)(image, batch[0] + 0.4, inside.float(), inside)
        torch.testing.assert_close(result, image, atol=1e-5, rtol=0)


def test_arguments_reach_the_equation():
    variants = [{}, {"factor": 0.5}, {"gradients": "mixed"}, {"gradients": "interpolated", "factor": 0.4}]
    results = [blended(3, lambda inside: inside, **more)[-1] for more in [*variants, {"spacing": (1.0, 1.0, 3.0)}]]
    image, *_ = blended(3, lambda inside: inside)
    torch.testing.assert_close(results[1] - image, (results[0] - image) / 2)
    assert all((one - other).abs().max() > 0.05 for one, other in itertools.combinations(results, 2))


def test_whole_numbers_do_not_wrap_around():
    image, source = (torch.randint(0, 256, (1, 20, 20), generator=torch.Generator().manual_seed(i)) for i in range(2))
    mask = torch.zeros(20, 20)
    mask[5:15, 5:15] = 1
    expected = poisson_blend(image.float(), source.float(), mask)
    for kind in (torch.uint8, torch.int16):
        torch.testing.assert_close(poisson_blend(image.to(kind), source.to(kind), mask), expected)


def test_factor_is_drawn():
    blend = PoissonBlend(factor=(0.2, 0.6)).set_random_state(0)
    drawn = []
    for _ in range(60):
        blend.randomize()
        drawn.append(blend.drawn_factor)
    assert 0.2 <= min(drawn) < 0.25
    assert 0.55 < max(drawn) <= 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"gradients": "all"}, "gradients"), ({"factor": (0, 1)}, "factor"), ({"spacing": 0}, "spacing")],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoissonBlend(**arguments)


def test_ill_shapes():
    image = torch.zeros(1, 5, 5)
    with pytest.raises(ValueError, match="same shape"):
        poisson_blend(image, image[:, :4], torch.ones(5, 5))
    with pytest.raises(ValueError, match="without channels"):
        poisson_blend(image, image, torch.ones(1, 5, 5))
    with pytest.raises(ValueError, match="at least 3"):
        poisson_blend(image[:, :2], image[:, :2], torch.ones(2, 5))
