"""SSM: restoration of randomly masked cells, and masks that are refined at evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Norm
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from ssmctb_monai.checks import check_choice, check_image, check_shares, check_whole
from ssmctb_monai.networks.blocks.factory import Block, make_block
from ssmctb_monai.networks.cell_masks import cell_masks, rand_cell_masks
from ssmctb_monai.networks.error_maps import (
    ErrorKind,
    error_map,
    gaussian_smooth,
    gradient_errors,
    mean_at_full_size,
    mean_over_modalities,
)
from ssmctb_monai.networks.nets.detector import Detector

Score = ErrorKind | Literal["mask"]
Restoration = Literal["unet", "gaussian"]

_TILE = {2: 64, 3: 16}  # cells along each axis, after which the fixed masks of evaluation come again
_FITTED_VALUES = 20_000  # of a batch


class MaskGate(nn.Module):
    """Adds to features what their visible part and the mask give: x + M · conv(relu(BN(conv([BN(x), M])))).

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels.
        block: block in place of the second convolution, see :func:`~ssmctb_monai.networks.blocks.make_block`.
    """

    def __init__(self, spatial_dims: int, channels: int, block: Block = None) -> None:
        super().__init__()
        self.norm = Norm[Norm.BATCH, spatial_dims](channels)
        self.first = _convolution(spatial_dims, channels + 1, channels)
        made = make_block(block, spatial_dims, channels)
        self.second = Conv[Conv.CONV, spatial_dims](channels, channels, 3, padding=1) if made is None else made

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Runs the gate.

        Args:
            x: features (batch, channels, height, width[, depth]).
            mask: what is visible, 1 or 0, (batch, 1, …) of any size.

        Returns:
            Tensor of the shape of ``x``.
        """
        mask = F.interpolate(mask, size=x.shape[2:], mode="nearest")
        return x + mask * self.second(self.first(torch.cat([self.norm(x), mask], dim=1)))


class RestorationUNet(nn.Module):
    """U-Net from a masked image and its mask to the whole image and the mask, with a `MaskGate` at every stage.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of image channels.
        channels: channels of the stages, each of half the size of the one before.
        block: block in place of the penultimate convolution, which is the last one of the last gate.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: Sequence[int], block: Block = None) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(
                _convolution(spatial_dims, before, width, stride=1 if index == 0 else 2),
                _convolution(spatial_dims, width, width),
            )
            for index, (before, width) in enumerate(zip([in_channels, *channels], channels, strict=False))
        )
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))  # (coarse, fine), from the bottleneck up
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"), Conv[Conv.CONV, spatial_dims](coarse, fine, kernel_size=1)
            )
            for coarse, fine in steps
        )
        self.fuse = nn.ModuleList(
            nn.Sequential(_convolution(spatial_dims, 2 * fine, fine), _convolution(spatial_dims, fine, fine))
            for _, fine in steps
        )
        self.bottleneck = MaskGate(spatial_dims, channels[-1])
        blocks = [*[None] * (len(steps) - 1), block]
        self.gates = nn.ModuleList(
            MaskGate(spatial_dims, fine, block) for (_, fine), block in zip(steps, blocks, strict=True)
        )
        self.output = Conv[Conv.CONV, spatial_dims](channels[0], in_channels + 1, kernel_size=3, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Restores an image.

        Args:
            image: image (batch, in_channels, height, width[, depth]), 0 where it is hidden.
            mask: what is visible, 1 or 0, shape (batch, 1, height, width[, depth]).

        Returns:
            The whole image, of the shape of ``image``, and the predicted mask, of the shape of ``mask``; both in
            (-1, 1).
        """
        features: list[Tensor] = []
        x = image
        for stage in self.down:
            x = stage(x)
            features.append(x)
        x = self.bottleneck(x, mask)
        for index, (up, fuse, gate) in enumerate(zip(self.up, self.fuse, self.gates)):  # noqa: B905 (TorchScript)
            x = gate(fuse(torch.cat([up(x), features[-2 - index]], dim=1)), mask)
        x = torch.tanh(self.output(x))
        return x[:, :-1], x[:, -1:]


class GaussianMean(nn.Module):
    """Restores an image by the Gaussian mean of what is visible, the width of which alone is learned.

    What any restoration must beat: normalised convolution, Knutsson and Westin, CVPR 1993,
    https://doi.org/10.1109/CVPR.1993.341081. The mask is predicted as it is.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        reach: number of voxels to each side that count.
    """

    def __init__(self, spatial_dims: int, reach: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.reach = reach
        self.log_sigma = nn.Parameter(torch.tensor(reach / 4).log())

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Restores an image, see `RestorationUNet`.

        Args:
            image: image (batch, in_channels, height, width[, depth]), 0 where it is hidden.
            mask: what is visible, 1 or 0, shape (batch, 1, height, width[, depth]).

        Returns:
            The restored image and the mask.
        """
        distance = torch.arange(-self.reach, self.reach + 1, device=image.device)
        # Far voxels weigh little, down to 1e-300, and autocast keeps double precision.
        weights = torch.exp(-0.5 * (distance / self.log_sigma.double().exp()) ** 2)
        total = torch.cat([image, mask], dim=1).double()
        channels = total.shape[1]
        for axis in range(self.spatial_dims):
            shape, padding = [1] * self.spatial_dims, [0] * self.spatial_dims
            shape[axis], padding[axis] = len(weights), self.reach
            kernel = weights.view([1, 1] + shape).repeat([channels, 1] + [1] * self.spatial_dims)  # noqa: RUF005
            if self.spatial_dims == 2:
                total = F.conv2d(total, kernel, padding=padding, groups=channels)
            else:
                total = F.conv3d(total, kernel, padding=padding, groups=channels)
        return (total[:, :-1] / total[:, -1:].clamp_min(1e-300)).to(image.dtype), mask


class SSM(Detector):
    """Self-supervised masking: cells of the image are hidden and restored, and normal ones uncovered step by step.

    Huang et al., *Self-Supervised Masking for Unsupervised Anomaly Detection and Localization*, IEEE TMM 25, 2023,
    https://arxiv.org/abs/2205.06568. In training each image gets cells of one of the sizes, drawn for it, in disjoint
    sets; a set is hidden at a time, and each voxel restored where it was hidden (`SSMLoss`). At evaluation this is done
    for all sizes r; the errors are averaged by weights r². Then what is clearly normal is uncovered, so that the rest
    is restored from more of the image: cells in which more than ``uncovering_share`` of the smoothed errors lie below
    ``normal_error``, a buffer that :meth:`fit` takes from lesion-free images; before that nothing is uncovered. The
    masks of evaluation are fixed, and stored in the state dict. The sets of one size run together, the sizes in turn,
    without gradients.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        channels: channels of the stages, each of half the size of the one before; published are
            (64, 128, 256, 512, 512).
        cell_sizes: sides of the cells, in units of ``spacing``. Lesions that are larger are restored as well as normal
            tissue is.
        num_sets: number of disjoint sets of cells.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution; ``"none"`` or ``None`` for no block.
        restoration: ``"unet"``, or ``"gaussian"`` for the mean of what is visible around, which has neither channels
            nor block: what a network must beat. It goes to TorchScript, not to ONNX, whose runtime has no convolution
            in double precision.
        num_passes: number of passes at evaluation; 1 for no refinement.
        score: error of the restoration, ``"msgms"`` as published, of the mean over modalities, or ``"l1"``, ``"l2"`` or
            ``"ssim"``, see :func:`~ssmctb_monai.networks.error_maps.error_map`; or ``"mask"``: that of the predicted
            masks, squared, the mean over the sets.
        spacing: voxel size, one number for all axes or one each.
        smoothing: standard deviation of the Gaussian that smooths errors before voxels are uncovered, in units of
            ``spacing``; one number for all axes or one each.
        uncovering_size: side of the cells that are uncovered, in units of ``spacing``.
        uncovering_share: share of such a cell that must be clearly normal.
        normal_quantile: share of the errors in lesion-free images that count as clearly normal.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = SSM(spatial_dims=3, in_channels=2, cell_sizes=(16, 32), spacing=2.0)
        >>> restored, predicted, masks = network(torch.rand(4, 2, 48, 48, 48))
        >>> network.eval()(torch.rand(1, 2, 40, 50, 30)).shape
        torch.Size([1, 1, 40, 50, 30])
    """

    if TYPE_CHECKING:  # TorchScript cannot read them
        mask_order: Tensor
        normal_error: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        cell_sizes: Sequence[float] = (2, 4, 8),
        num_sets: int = 3,
        block: Block = "ssmctb",
        restoration: Restoration = "unet",
        num_passes: int = 2,
        score: Score = "msgms",
        spacing: Sequence[float] | float = 1.0,
        smoothing: Sequence[float] | float = 7.0,
        uncovering_size: float = 8.0,
        uncovering_share: float = 0.8,
        normal_quantile: float = 0.9,
    ) -> None:
        check_choice((*get_args(ErrorKind), "mask"), score=score)
        check_choice(get_args(Restoration), restoration=restoration)
        if len(channels) < 2 or not cell_sizes:
            raise ValueError(
                f"channels must be at least two and cell_sizes one, got {list(channels)}, {list(cell_sizes)}."
            )
        check_whole(1, num_passes=num_passes, **{f"channels[{index}]": width for index, width in enumerate(channels)})
        check_whole(2, num_sets=num_sets)
        check_shares(uncovering_share=uncovering_share, normal_quantile=normal_quantile)
        # The scales of MSGMS take at least 24 voxels.
        super().__init__(spatial_dims, in_channels, stride=max(2 ** (len(channels) - 1), 32 if score == "msgms" else 1))
        widths = ensure_tuple_rep(spacing, spatial_dims)
        positive = {"cell_sizes": cell_sizes, "spacing": widths, "uncovering_size": [uncovering_size]}
        for name, values in positive.items():
            if not all(value > 0 for value in values):
                raise ValueError(f"{name} must be positive, got {values}.")
        deviations = ensure_tuple_rep(smoothing, spatial_dims)
        if min(deviations) < 0:
            raise ValueError(f"smoothing must not be negative, got {smoothing}.")

        def in_voxels(side: float) -> list[int]:
            return [max(1, round(side / width)) for width in widths]

        self.cells = [in_voxels(side) for side in cell_sizes]
        self.network = (
            RestorationUNet(spatial_dims, in_channels, channels, block)
            if restoration == "unet"
            else GaussianMean(spatial_dims, reach=max(map(max, self.cells)))
        )
        self.weights = [side**2 / sum(other**2 for other in cell_sizes) for side in cell_sizes]
        self.num_sets = num_sets
        self.num_passes = num_passes
        self.score = score
        self.sigma = [deviation / width for deviation, width in zip(deviations, widths, strict=True)]
        self.uncovering_cell = in_voxels(uncovering_size)
        self.uncovering_share = uncovering_share
        self.normal_quantile = normal_quantile
        tile = [_TILE[spatial_dims]] * spatial_dims
        generator = torch.Generator("cpu").manual_seed(0)
        orders = [
            torch.randperm(_TILE[spatial_dims] ** spatial_dims, generator=generator, device="cpu").view(tile)
            for _ in range(num_passes * len(cell_sizes))
        ]
        self.register_buffer("mask_order", torch.stack(orders).view(num_passes, len(cell_sizes), *tile))
        self.register_buffer("normal_error", torch.zeros(()))

    @classmethod
    def from_released(cls, state_dict: Mapping[str, Tensor], **arguments: Any) -> SSM:
        """Builds the published network of a checkpoint of the authors' PyTorch release.

        Widths and channels follow from the shapes. The release uncovers where an error lies below 0.0157; fit the
        threshold to lesion-free images, or set ``normal_error``.

        Args:
            state_dict: the network's state dict, as the release saves it; a leading ``module.`` is ignored.
            arguments: further arguments of the class, by name.

        Returns:
            The network without block.

        Raises:
            ValueError: when keys or shapes are not those of the release.

        Example:
            >>> network = SSM.from_released(torch.load("ssm.pth", weights_only=True)).eval()
        """
        state = {name.removeprefix("module."): value for name, value in state_dict.items()}
        num_stages = sum(name.startswith("down") and name.endswith(".conv1.weight") for name in state)
        firsts = [state[name] for stage in range(num_stages) if (name := f"down{stage + 1}.conv1.weight") in state]
        if len(firsts) < max(num_stages, 2) or any(first.dim() != 4 for first in firsts):
            raise ValueError(f"Not a checkpoint of SSM's release: no 'down1.conv1.weight', … among {sorted(state)}.")
        network = cls(2, firsts[0].shape[1], [len(first) for first in firsts], block=None, **arguments)
        names = _released_names(num_stages)
        layers = {name: name.rpartition(".") for name in state}
        renamed = {f"{names.get(layer, layer)}.{kind}": state[name] for name, (layer, _, kind) in layers.items()}
        try:
            network.network.load_state_dict(renamed)
        except RuntimeError as error:
            raise ValueError(f"Not a checkpoint of SSM's release: {error}") from error
        return network

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hides cells of each image, of a size drawn for it, and restores them.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]).

        Returns:
            The image, each voxel restored from where it was hidden, of the shape of ``x``; the predicted masks and the
            true ones, 1 where visible and 0 where hidden, both (batch, num_sets, height, width[, depth]).
        """
        padded = self.padded(x)
        batch, size = len(padded), padded.shape[2:]
        drawn = torch.randint(len(self.cells), (batch,)).tolist()
        masks = torch.cat(
            [rand_cell_masks(1, size, self.cells[index], self.num_sets, padded.device) for index in drawn]
        ).to(padded.dtype)
        restored, predicted = self._restore(padded, masks)
        return self.cut(restored, x), self.cut(predicted, x), self.cut(masks, x)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds what is not restored as it was.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        return self.cut(self._refine(self.padded(x))[0], x).clamp(0, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Restores the image in the last pass.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The mean over the cell sizes, weighted as the errors are, of the shape of ``x``. What is uncovered stays as
            it is.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self.cut(self._refine(self.padded(x))[1], x)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets below which error a voxel is clearly normal: a quantile of the smoothed errors of the first pass.

        Args:
            batches: lesion-free images (batch, in_channels, height, width[, depth]), and masks of their brain
                (batch, 1, height, width[, depth]), in which errors count.

        Raises:
            ValueError: when no voxel counts.
        """
        training = self.training
        self.eval()
        found = [torch.empty(0)]
        for image, brain in batches:
            padded = self.padded(image)
            errors, _ = self._pass(padded, 0, torch.zeros_like(padded[:, :1]))
            values = self.cut(gaussian_smooth(errors, self.sigma), image)[brain > 0]
            found.append(values[:: len(values) // _FITTED_VALUES + 1].cpu())
        self.train(training)
        values = torch.cat(found)
        if not len(values):
            raise ValueError("There is no voxel of lesion-free brain to take the threshold of normal errors from.")
        self.normal_error.fill_(float(np.quantile(values.numpy(), self.normal_quantile)))  # torch's takes 16 million

    def _refine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Errors (batch, 1, …) and restoration (batch, in_channels, …) of the last pass."""
        with torch.no_grad():  # gradients through all passes would take a hundred times the memory
            uncovered = torch.zeros_like(x[:, :1])
            errors, restored = self._pass(x, 0, uncovered)
            for index in range(1, self.num_passes):
                uncovered = torch.maximum(uncovered, self._clearly_normal(gaussian_smooth(errors, self.sigma)))
                errors, restored = self._pass(x, index, uncovered)
        return errors, restored

    def _pass(self, x: Tensor, index: int, uncovered: Tensor) -> tuple[Tensor, Tensor]:
        """Errors and restoration, over all cell sizes."""
        errors, restoration = torch.zeros_like(x[:, :1]), torch.zeros_like(x)
        for which, weight in enumerate(self.weights):
            masks = torch.maximum(self._masks(x, index, which), uncovered.to(x.dtype))
            restored, predicted = self._restore(x, masks)
            if self.score == "mask":
                error = (predicted - masks).square().mean(dim=1, keepdim=True)
            elif self.score == "msgms":
                grey = [mean_over_modalities(image.float(), x) for image in (restored, x)]
                error = mean_at_full_size(gradient_errors(grey[0], grey[1], "reflect"), list(x.shape[2:]))
            else:
                error = error_map(restored.clamp(0, 1), x, self.score)
            errors = errors + weight * error
            restoration = restoration + weight * restored
        return errors, restoration

    def _masks(self, x: Tensor, index: int, which: int) -> Tensor:
        """Fixed masks of a pass for a cell size (1, num_sets, …)."""
        size, cell = list(x.shape[2:]), self.cells[which]
        order = self.mask_order[index, which]
        for axis, width in enumerate(cell):
            number = (size[axis] + width - 1) // width
            order = order.index_select(axis, torch.arange(number, device=x.device) % order.shape[axis])
        # Where the tile comes again, the earlier of two equal cells is dealt first.
        flat = order.flatten()
        total = flat.shape[0]
        ranks = (flat * total + torch.arange(total, device=x.device)).argsort().argsort().view(order.shape)
        return cell_masks(ranks.unsqueeze(0), size, cell, self.num_sets).to(x.dtype)

    def _restore(self, x: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Each voxel from where it was hidden (batch, in_channels, …), and the predicted masks (batch, num_sets, …)."""
        visible = masks.flatten(0, 1).unsqueeze(1)
        images = x.repeat_interleave(self.num_sets, dim=0)
        restored, predicted = self.network(images * visible, visible)
        restored = restored.unflatten(0, [x.shape[0], self.num_sets])
        filled = (restored * (1 - masks).unsqueeze(2)).sum(dim=1) + x * masks.prod(dim=1, keepdim=True)
        return filled, predicted.view(masks.shape)

    def _clearly_normal(self, errors: Tensor) -> Tensor:
        """1 in cells of mostly small errors, 0 in the others, shape (batch, 1, …)."""
        normal = (errors < self.normal_error).to(errors.dtype)
        padding: list[int] = []
        for axis in range(errors.dim() - 1, 1, -1):
            padding += [0, -errors.shape[axis] % self.uncovering_cell[axis - 2]]
        padded = F.pad(normal, padding, mode="replicate")
        cell = self.uncovering_cell
        shares = F.avg_pool2d(padded, cell) if self.spatial_dims == 2 else F.avg_pool3d(padded, cell)
        cells = (shares > self.uncovering_share).to(errors.dtype)
        return self.cut(F.interpolate(cells, size=padded.shape[2:], mode="nearest"), errors)


def _convolution(spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """Convolution with batch norm and ReLU that keeps the size or, with 4 voxels an axis, halves it."""
    return Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=stride,
        kernel_size=3 if stride == 1 else 4,
        padding=1,
        adn_ordering="NA",
        norm="batch",
        act="relu",
    )


def _released_names(num_stages: int) -> dict[str, str]:
    """Names of the layers in the release -> here."""
    names = {"conv_final.0": "output"}
    for stage in range(num_stages):
        for layer in (0, 1):
            names[f"down{stage + 1}.conv{layer + 1}"] = f"down.{stage}.{layer}.conv"
            names[f"down{stage + 1}.bn{layer + 1}"] = f"down.{stage}.{layer}.adn.N"
            names[f"up{stage + 1}.conv{layer + 1}"] = f"fuse.{stage}.{layer}.conv"
            names[f"up{stage + 1}.bn{layer + 1}"] = f"fuse.{stage}.{layer}.adn.N"
        names[f"up{stage + 1}.upconv"] = f"up.{stage}.1"
        gate = f"gates.{stage - 1}" if stage else "bottleneck"
        names[f"mask{stage + 1}.bn1"] = f"{gate}.norm"
        names[f"mask{stage + 1}.conv2"] = f"{gate}.first.conv"
        names[f"mask{stage + 1}.bn2"] = f"{gate}.first.adn.N"
        names[f"mask{stage + 1}.conv3"] = f"{gate}.second"
    return names
