"""What could make the block matter: DRAEM with SSMCTB in other ways, and what its blocks learnt.

python -m benchmarks.block_study [--work_dir DIR] [--iterations 400]

The networks and the loss are rows of the accuracy tables (`BLOCK_STUDY` in ``benchmarks/accuracy/rows.py``); the
command shows how the blocks of the finished rows were trained. What came of it is in ``docs/block_study.md``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.rows import ROWS
from benchmarks.accuracy.runs import recipe
from ssmctb_monai.losses import SelfSupervisedLoss
from ssmctb_monai.networks.blocks import SSMCTB, Encoder, named_blocks
from ssmctb_monai.networks.nets import DRAEM


class DetachedTarget(SSMCTB):
    """The block whose loss does not reach its target: features are not drawn towards what is easy to predict."""

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """As of the block, without gradient to the target."""
        return super().error(output, target.detach())


class NormalisedTarget(SSMCTB):
    """The block whose loss is relative to the rms of each channel of its input: to shrink features does not pay."""

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """As of the block, of both in units of the target's rms."""
        dims = [0, *range(2, target.dim())]
        rms = target.float().square().mean(dim=dims, keepdim=True).add(1e-8).sqrt()
        return super().error(output / rms, target / rms)


class DetachedDRAEM(DRAEM):
    """DRAEM whose block's target is detached."""

    def __init__(self, spatial_dims: int, **arguments: Any) -> None:
        super().__init__(spatial_dims, block=lambda channels: DetachedTarget(spatial_dims, channels), **arguments)


class NormalisedDRAEM(DRAEM):
    """DRAEM whose block's loss is relative to its input."""

    def __init__(self, spatial_dims: int, **arguments: Any) -> None:
        super().__init__(spatial_dims, block=lambda channels: NormalisedTarget(spatial_dims, channels), **arguments)


class WideMaskDRAEM(DRAEM):
    """DRAEM whose block sees nothing nearer than 9 voxels to the voxel that it predicts: m = 9, d = 4."""

    def __init__(self, spatial_dims: int, **arguments: Any) -> None:
        def wide(channels: int) -> SSMCTB:
            return SSMCTB(spatial_dims, channels, mask_size=9, dilation=4)

        super().__init__(spatial_dims, block=wide, **arguments)


class AllScalesDRAEM(DRAEM):
    """DRAEM with a block in every stage of the reconstructive decoder."""

    def __init__(self, spatial_dims: int, reconstructive_width: int = 16, **arguments: Any) -> None:
        super().__init__(spatial_dims, reconstructive_width=reconstructive_width, block="ssmctb", **arguments)
        for factor, stage in zip((8, 4, 2), self.reconstructive[1].stages, strict=False):
            stage[-1] = SSMCTB(spatial_dims, factor * reconstructive_width)


class InputFeaturesDRAEM(DRAEM):
    """DRAEM whose block predicts the finest features of the input, which the discriminative decoder takes besides.

    The prediction replaces the skip connection's features.
    """

    def __init__(self, spatial_dims: int, discriminative_width: int = 16, **arguments: Any) -> None:
        super().__init__(spatial_dims, discriminative_width=discriminative_width, block="none", **arguments)
        self.block = SSMCTB(spatial_dims, discriminative_width)

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As of DRAEM."""
        padded = self.padded(x)
        reconstruction = self.reconstructive(padded)
        encoder, decoder = self.discriminative
        finest, *coarser = encoder(torch.cat([reconstruction, padded], dim=1))
        return self.cut(reconstruction, x), self.cut(decoder([self.block(finest), *coarser]), x)


class ErrorInputDRAEM(DRAEM):
    """DRAEM whose discriminative sub-network also sees the block's error on the finest features of the input."""

    def __init__(
        self, spatial_dims: int, in_channels: int = 1, reconstructive_width: int = 16, **arguments: Any
    ) -> None:
        super().__init__(spatial_dims, in_channels, reconstructive_width, block="none", **arguments)
        self.block = SSMCTB(spatial_dims, reconstructive_width)
        widths = [stage[-1].conv.out_channels for stage in self.discriminative[0].stages]
        self.discriminative[0] = Encoder(spatial_dims, 2 * in_channels + 1, widths)

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As of DRAEM."""
        padded = self.padded(x)
        encoder, decoder = self.reconstructive
        features = encoder(padded)
        finest = features[0]
        error = self.block.error(self.block(finest), finest).mean(dim=1, keepdim=True)
        reconstruction = decoder(features)
        logits = self.discriminative(torch.cat([reconstruction, padded, error.to(padded.dtype)], dim=1))
        return self.cut(reconstruction, x), self.cut(logits, x)


class StudiedLoss(SelfSupervisedLoss):
    """The loss of every row of the study: also logs the rms of what the blocks take, and lets λ rise.

    Args:
        arguments: those of `SelfSupervisedLoss`.
        rising_steps: number of steps in which λ rises linearly from 0 to its value: first features, then their
            prediction.
        named: those of `SelfSupervisedLoss`.
    """

    def __init__(self, *arguments: Any, rising_steps: int = 0, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.rising_steps, self.final_weight, self.steps = rising_steps, self.weight, 0
        self.squares: list[Tensor] = []
        for block in named_blocks(self._network[0]).values():
            block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if block.training:
            self.squares.append(args[0].detach().float().square().mean())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As of `SelfSupervisedLoss`."""
        risen = min(1.0, self.steps / self.rising_steps) if self.rising_steps else 1.0
        self.weight = risen * self.final_weight
        self.steps += 1
        total = super().forward(*args, **kwargs)
        if self.squares:
            self.parts["rms"] = torch.stack(self.squares).mean().sqrt()
            self.squares.clear()
        return total


def parts_of_epochs(log: str) -> list[dict[str, float]]:
    """Reads the parts of the loss in the lines of epochs of a training's log.

    Args:
        log: its text.

    Example:
        >>> parts_of_epochs("… Epoch 1/9 | loss 0.2 (image 0.1 + block 0.02 + rms 0.4) | …")
        [{'image': 0.1, 'block': 0.02, 'rms': 0.4}]
    """
    found = re.findall(r"Epoch \d+/\d+ \| loss \S+ \((.*?)\)", log)
    return [{name: float(value) for name, value in (part.split() for part in parts.split(" + "))} for parts in found]


def table(work_dir: Path, rows: Sequence[str]) -> str:
    """Makes the table of how blocks were trained.

    Args:
        work_dir: folder of the runs.
        rows: names of rows.

    Returns:
        Markdown: for each run the block's loss, the rms of its input and, of the input's power, the share that it does
        not predict, after a tenth, a half and all of the training.
    """
    lines = [
        "| row | fold, seed | after | block loss | rms of its input | not predicted |",
        "|---|---|---|---|---|---|",
    ]
    for log in [log for row in rows for log in sorted((work_dir / row).glob("fold*_seed*/training.log"))]:
        found = parts_of_epochs(log.read_text(encoding="utf-8"))
        for share in (0.1, 0.5, 1.0):
            parts = found[max(0, round(share * len(found)) - 1)]
            if "rms" not in parts:
                continue
            block, rms = parts["block"], parts["rms"]
            head = f"| {log.parts[-3]} | {log.parts[-2]}" if share == 0.1 else "| |"
            lines.append(f"{head} | {share:.0%} | {block:.4f} | {rms:.3f} | {2 * block / rms**2:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.block_study", description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/accuracy"), help="that of the rows")
    parser.add_argument("--iterations", type=int, help="as the rows were trained")
    settings = parser.parse_args(arguments)
    print(table(settings.work_dir / recipe(settings.iterations), [name for name in ROWS if "-study_" in name]))


if __name__ == "__main__":
    main()
