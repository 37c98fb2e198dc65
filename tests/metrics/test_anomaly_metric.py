"""The evaluation inside MONAI's engines."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from ignite.exceptions import NotComputableError
from metric_checks import SMALL
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.transforms import CopyItemsd
from torch import nn

from ssmctb_monai.metrics import AnomalyEvaluation, AnomalyMetric
from ssmctb_monai.metrics.case_statistics import CaseStatistics

METRICS = ("pixel_average_precision", "pixel_auroc", "slice_auroc", "slice_auroc_position_matched", "dice_at_threshold")
KEYS = ["pred", "label", "inside", "free"]  # the output has no keys of the batch, but copies


def make_items(count=5, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    items = []
    for _ in range(count):
        label = torch.rand(1, 8, 8, 12, generator=generator) < 0.02
        label[..., ::3] = False
        image = scale * (torch.rand(1, 8, 8, 12, generator=generator) + 0.2 * label) + shift
        brain = torch.rand(1, 8, 8, 12, generator=generator) < 0.8
        region = brain & (torch.arange(12) < 4)
        items.append({"image": image, "label": label.byte(), "brain": brain.byte(), "region": region.byte()})
    return items


def make_evaluator(items, metric, batch_size=1, decollate=True, names=METRICS):
    key, *others = names
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=batch_size),
        network=nn.Identity(),
        postprocessing=CopyItemsd(["brain", "region"], names=["inside", "free"]),
        key_val_metric={key: metric.select("model", key)},
        additional_metrics={name: metric.select("model", name) for name in others},
        decollate=decollate,
    )


def evaluation_of(items):
    evaluation = AnomalyEvaluation(settings=SMALL)
    for index, item in enumerate(items):
        maps = {"model": item["image"]}
        evaluation.add(str(index), maps, item["label"], item["brain"], lesion_free=item["region"])
    return evaluation


def expected_metrics(items):
    evaluation = evaluation_of(items)
    return {name: pytest.approx(evaluation.value("model", name), nan_ok=True) for name in METRICS}


# -------------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_in_an_evaluator(batch_size):
    items = make_items()
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(items, metric, batch_size)
    for _ in range(2):  # a second run starts anew
        evaluator.run()
        assert evaluator.state.metrics == expected_metrics(items)
        assert len(metric.evaluation.cases) == 5
    metrics = evaluator.state.metrics
    assert all(0 < metrics[name] < 1 for name in METRICS[:4])
    assert math.isnan(metrics["dice_at_threshold"])  # there is no threshold
    assert evaluator.state.key_metric_name == "pixel_average_precision"
    assert evaluator.state.best_metric == metrics["pixel_average_precision"]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_in_an_evaluator_that_keeps_batches(batch_size):
    items = make_items()
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(items, metric, batch_size, decollate=False)
    evaluator.run()
    assert evaluator.state.metrics == expected_metrics(items)


@pytest.mark.parametrize("count", [1, 5])
def test_each_case_is_counted_once(count):
    """However many metrics are asked for."""
    items = make_items(3)
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(items, metric, names=METRICS[:count])
    with mock.patch.object(CaseStatistics, "of", wraps=CaseStatistics.of) as of:
        evaluator.run()
    assert of.call_count == 3


@pytest.mark.parametrize(("scale", "shift"), [(1e5, 0), (1e-6, 0), (30, -500)])
def test_scores_of_any_range(scale, shift):
    items, scaled = make_items(), make_items(scale=scale, shift=shift)
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(scaled, metric)
    evaluator.run()
    assert evaluator.state.metrics == expected_metrics(scaled)
    for name, value in expected_metrics(items).items():
        assert evaluator.state.metrics[name] == pytest.approx(value.expected, abs=1e-3, nan_ok=True)


def test_orientation_of_metatensors():
    """Slices are axial whatever the storage; here the first axis runs from the head down."""
    items = make_items()
    sagittal = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    turned = [
        {key: MetaTensor(value.permute(0, 3, 2, 1).flip(1), affine=sagittal) for key, value in item.items()}
        for item in items
    ]
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(turned, metric)
    evaluator.run()
    assert evaluator.state.metrics == expected_metrics(items)


# ---------------------------------------------------------------------------------------------------- without an engine


def test_several_methods_and_their_thresholds():
    items = make_items()
    metric = AnomalyMetric(["model", "baseline"], settings=SMALL)
    for item in items:
        metric.update([[item[key]] for key in ("image", "region", "label", "brain", "region")])
    evaluation, expected = metric.compute(), evaluation_of(items)
    assert evaluation.methods == ["model", "baseline"]
    assert evaluation.estimates("model").keys() == expected.estimates("model").keys()
    assert evaluation.value("model", "pixel_auroc") == expected.value("model", "pixel_auroc")
    assert evaluation.value("baseline", "pixel_auroc") != evaluation.value("model", "pixel_auroc")
    thresholds = metric.label_free_thresholds(0.02)
    assert thresholds["model"] == expected.label_free_thresholds(0.02)["model"]
    free = torch.cat([item["image"][(item["region"] > 0) & (item["label"] == 0)] for item in items])
    assert float((free >= thresholds["model"].value).float().mean()) == pytest.approx(0.02, abs=2 / len(free))
    assert thresholds["baseline"].value > 1  # all in the region are 1


def test_without_lesion_free_regions():
    item = make_items(1)[0]
    metric = AnomalyMetric(settings=SMALL)
    metric.update([[item[key]] for key in ("image", "label", "brain")])
    assert metric.compute().cases[0].lesion_free is None
    with pytest.raises(ValueError, match="no lesion-free region"):
        metric.label_free_thresholds()


def test_batches_are_lists_of_cases():
    items = make_items(4)
    one, other = AnomalyMetric(settings=SMALL), AnomalyMetric(settings=SMALL)
    for item in items:
        one.update([[item[key]] for key in ("image", "label", "brain")])
    other.update([torch.stack([item[key] for item in items]) for key in ("image", "label", "brain")])
    for name in METRICS:
        assert one.compute().value("model", name) == pytest.approx(other.compute().value("model", name), nan_ok=True)
    assert one.compute().cases[3].normal.total == other.compute().cases[3].normal.total


def test_names_of_cases():
    """Behind the lesion-free regions, or the brain masks where there are none."""
    items = make_items(2)
    for keys in (["image", "label", "brain", "region"], ["image", "label", "brain"]):
        metric = AnomalyMetric(settings=SMALL)
        metric.update([[item[key] for item in items] for key in keys] + [["one", "other"]])
        assert [case.case_id for case in metric.compute().cases] == ["one", "other"]
        assert all((case.lesion_free is None) == ("region" not in keys) for case in metric.compute().cases)
        with pytest.raises(ValueError, match="one: the case was added before"):
            metric.update([[item[key] for item in items] for key in keys] + [["one", "third"]])


def test_reset_forgets():
    item = make_items(1)[0]
    metric = AnomalyMetric(settings=SMALL)
    with pytest.raises(NotComputableError):
        metric.compute()
    metric.update([[item[key]] for key in ("image", "label", "brain")])
    assert len(metric.compute().cases) == 1
    metric.reset()
    with pytest.raises(NotComputableError):
        metric.compute()


def test_settings():
    item = make_items(1)[0]
    for settings in (SMALL, None):
        metric = AnomalyMetric(settings=settings)
        metric.update([[item[key]] for key in ("image", "label", "brain")])
        assert metric.compute().settings.top_k == (20 if settings is None else 3)


def test_a_metric_is_nan_without_a_lesion():
    items = [{**item, "label": torch.zeros_like(item["label"])} for item in make_items(2)]
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(items, metric)
    evaluator.run()
    assert all(math.isnan(value) for value in evaluator.state.metrics.values())


def test_a_number_of_maps_unlike_that_of_labels():
    item = make_items(1)[0]
    with pytest.raises(ValueError, match="zip"):
        AnomalyMetric().update(([item["image"]] * 2, [item["label"]], [item["brain"]]))


def test_nan_names_the_case():
    items = make_items(2)
    items[1]["image"][items[1]["brain"] > 0] = torch.nan
    metric = AnomalyMetric(settings=SMALL)
    with pytest.raises(ValueError, match=r"case 2: .*model.*NaN"):
        metric.update([[item[key] for item in items] for key in ("image", "label", "brain")])


@pytest.mark.parametrize(("method", "name"), [("model", "dice"), ("other", "pixel_auroc")])
def test_unknown_names(method, name):
    with pytest.raises(ValueError, match=rf"'model'.*pixel_auroc.*got {method}, {name}"):
        AnomalyMetric().select(method, name)


# ------------------------------------------------------------------------------------------------------------ processes


def metrics_of_a_process(rank):
    """Three cases on one process and two on the other, through engines."""
    items = make_items()[rank::2]
    metric = AnomalyMetric(["model"], from_engine(KEYS), SMALL)
    evaluator = make_evaluator(items, metric)
    evaluator.run()
    repeated = AnomalyMetric(["model"], settings=SMALL)
    for index in ((0, 2, 4), (1, 3, 0))[rank]:  # as a sampler does that gives each process as many
        item = make_items()[index]
        repeated.update([[item[key]] for key in ("image", "label", "brain", "region")] + [[f"case {index}"]])
    thresholds = [each.label_free_thresholds()["model"] for each in (metric, repeated)]
    cases = [[case.case_id for case in each.compute().cases] for each in (metric, repeated)]
    return evaluator.state.metrics, cases, thresholds


@pytest.mark.process
def test_two_processes(of_processes):
    """No case is taken for one of the other process."""
    items = make_items()
    threshold = evaluation_of(items).label_free_thresholds()["model"]
    for metrics, (unnamed, named), thresholds in of_processes[1]:
        assert len(unnamed) == 5
        assert named == [f"case {index}" for index in range(5)]  # once, also the one that both processes had
        assert metrics == expected_metrics(items)
        assert thresholds == [threshold, threshold]
    assert np.isfinite(threshold.value)
