"""Figures of anomaly detection inside MONAI's engines."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.exceptions import NotComputableError
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.transforms import CopyItemsd
from torch import nn

from ssmctb_monai.metrics import AnomalyMetric, CaseStatistics
from ssmctb_monai.metrics.case_statistics import pixel_auroc, pixel_average_precision, slice_auroc

FIGURES = {
    "slice_auroc": slice_auroc,
    "pixel_auroc": pixel_auroc,
    "pixel_average_precision": pixel_average_precision,
}


def make_items(count=5):
    generator = torch.Generator().manual_seed(0)
    items = []
    for _ in range(count):
        label = (torch.rand(1, 8, 8, 12, generator=generator) < 0.02).to(torch.uint8)
        image = (0.7 * torch.rand(1, 8, 8, 12, generator=generator) + 0.1 * label).clamp(0, 1)
        brain = (torch.rand(1, 8, 8, 12, generator=generator) < 0.8).to(torch.uint8)
        items.append({"image": image, "label": label, "brain": brain})
    return items


def make_evaluator(items, batch_size, top_k=20, decollate=True):
    metrics = {name: AnomalyMetric(name, from_engine(["pred", "label", "inside"]), top_k=top_k) for name in FIGURES}
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=batch_size),
        network=nn.Identity(),
        postprocessing=CopyItemsd("brain", names="inside"),
        key_val_metric={"pixel_average_precision": metrics.pop("pixel_average_precision")},
        additional_metrics=metrics,
        decollate=decollate,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("top_k", [20, 3])
def test_in_an_evaluator_with_decollate(batch_size, top_k):
    items = make_items()
    evaluator = make_evaluator(items, batch_size, top_k)
    cases = [CaseStatistics.of(item["image"], item["label"], item["brain"], top_k) for item in items]
    for _ in range(2):  # a second run starts anew
        evaluator.run()
        assert evaluator.state.metrics == {name: pytest.approx(figure(cases)) for name, figure in FIGURES.items()}
    assert evaluator.state.best_metric == pytest.approx(pixel_average_precision(cases))
    assert 0 < evaluator.state.metrics["slice_auroc"] < 1


def test_without_an_engine():
    items = make_items(3)
    metric = AnomalyMetric("pixel_auroc")
    for item in items:
        metric.update(tuple(item[key][None] for key in ("image", "label", "brain")))
    expected = [CaseStatistics.of(item["image"], item["label"], item["brain"]) for item in items]
    assert metric.compute() == pixel_auroc(expected)
    metric.reset()
    with pytest.raises(NotComputableError):
        metric.compute()


def test_a_number_of_maps_unlike_that_of_labels():
    image, label, brain = (make_items(1)[0][key] for key in ("image", "label", "brain"))
    with pytest.raises(ValueError, match="zip"):
        AnomalyMetric("pixel_auroc").update(([image, image], [label], [brain]))


def test_figure_is_nan_without_a_lesion():
    item = make_items(1)[0]
    metric = AnomalyMetric("slice_auroc")
    metric.update(([item["image"]], [torch.zeros_like(item["label"])], [item["brain"]]))
    assert math.isnan(metric.compute())


def test_unknown_figure():
    with pytest.raises(ValueError, match=r"pixel_auroc.*'dice'"):
        AnomalyMetric("dice")
