"""Training steps of the bundles: with and without their data pipeline, and against the same network as it comes."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.losses import SSIMLoss

from benchmarks.measure import Row, Run, compare
from ssmctb_monai.losses import DRAEMLoss, SelfSupervisedLoss
from ssmctb_monai.networks.nets import DRAEM


def bundle(name: str, dataset_dir: str | None, folder: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(f"bundles/{name}/train.json")
    changes = {"ckpt_dir": folder, "output_dir": folder, "cache_dir": f"{folder}/cache", "tensorboard": False}
    for key, value in (changes | ({"dataset_dir": dataset_dir} if dataset_dir else {})).items():
        parser[key] = value
    return parser


def batches(loader: Any) -> Iterator[dict[str, Any]]:
    """Batches without end, epoch after epoch, the smaller last one of an epoch left out."""
    epoch = 0
    while True:
        loader.dataset.set_epoch(epoch)
        epoch += 1
        count = 0
        for batch in loader:
            count += loader.batch_size
            if count <= len(loader.dataset):
                yield batch


def step(trainer: SupervisedTrainer, loader: Iterator[dict[str, Any]]) -> None:
    trainer._iteration(trainer, next(loader))


def plain_step(parser: ConfigParser, batch: dict[str, Any]) -> Run:
    """The same networks and losses in float32 and contiguous memory, SSIM by MONAI, Adam as it comes."""
    get = parser.get_parsed_content
    network = DRAEM(
        get("spatial_dims"),
        reconstructive_width=get("system#network#reconstructive_width"),
        discriminative_width=get("system#network#discriminative_width"),
        block=get("block"),
    ).to(get("device"))
    task_loss = DRAEMLoss(get("spatial_dims"), get("system#loss").ssim_window)
    ssim = SSIMLoss(get("spatial_dims"), win_size=task_loss.ssim_window)
    task_loss._ssim = lambda reconstruction, clean: 1 - ssim(reconstruction, clean)
    loss = SelfSupervisedLoss(task_loss, network, get("block_weight"))
    optimizer = torch.optim.Adam(network.parameters(), get("learning_rate"))
    prepare = get("system#prepare_batch")

    def run() -> None:
        image, targets = prepare(batch, get("device"))
        optimizer.zero_grad()
        loss(network(image), targets).backward()
        optimizer.step()

    return run


def rows(dataset_dir: str | None) -> Iterator[Row]:
    data = "given data" if dataset_dir else "demo data"
    for name in ("brats3d", "brats2d"):
        with tempfile.TemporaryDirectory() as folder:
            parser = bundle(name, dataset_dir, folder)
            trainer = parser.get_parsed_content("train#trainer")
            loader = batches(parser.get_parsed_content("train#dataloader"))
            batch = next(loader)
            trainer.network.train()
            in_memory = partial(step, trainer, itertools.repeat(batch))
            seconds, share = compare(partial(step, trainer, loader), in_memory, rounds=8, min_seconds=2)
            shape = "x".join(map(str, batch["image"].shape))
            yield Row(
                f"training step of {name} with its data, {data}, {shape}",
                "the step on a batch in memory",
                seconds,
                share,
                "≤ 1.05",
            )
            seconds, share = compare(in_memory, plain_step(parser, batch), rounds=5, min_seconds=2)
            yield Row(
                f"training step of {name}, {shape}",
                "float32, contiguous, MONAI's SSIM, plain Adam",
                seconds,
                1 / share,
                "≥ 2",
            )
