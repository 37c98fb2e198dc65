"""Draws folders of images in the layouts of MVTec AD, of the retinal OCT images and of videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.io import imsave


def draw(path: Path, seed: int, size=(48, 64), colours: int | None = 3, bright: bool = False) -> None:
    """Stripes with noise, in which a square may be bright."""
    rng = np.random.default_rng(seed)
    image = 90 + 40 * np.sin(np.arange(size[1]) / 4) + rng.normal(0, 8, size)
    if bright:
        image[10:26, 20:36] += 90
    pixels = image.clip(0, 255).astype(np.uint8)
    if colours:
        pixels = np.stack([pixels // (channel + 1) for channel in range(colours)], axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, pixels, check_contrast=False)


def draw_mvtec(root: Path, training: int = 6, **drawing) -> Path:
    """A class with one kind of defect."""
    for index in range(training):
        draw(root / f"train/good/{index:03}.png", index, **drawing)
    for index in range(2):
        draw(root / f"test/good/{index:03}.png", 100 + index, **drawing)
        draw(root / f"test/spot/{index:03}.png", 200 + index, bright=True, **drawing)
        mask = np.zeros(drawing.get("size", (48, 64)), dtype=np.uint8)
        mask[10:26, 20:36] = 255
        (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
        imsave(root / f"ground_truth/spot/{index:03}_mask.png", mask, check_contrast=False)
    return root


def draw_oct(root: Path, training: int = 6) -> Path:
    """Grey images, two of a patient."""
    for index in range(training):
        draw(root / f"train/NORMAL/NORMAL-{index // 2}-{index}.jpeg", index, colours=None)
    for index, kind in enumerate(("NORMAL", "CNV", "DME", "DRUSEN")):
        for number in range(2):
            name = f"{kind}-{50 + index}-{number}.jpeg"
            draw(root / "test" / kind / name, 100 + 10 * index + number, colours=None, bright=kind != "NORMAL")
    return root


def draw_videos(root: Path, training: int = 3, labels: str = "pixels", length: int = 6) -> Path:
    """Videos of a few frames; in the first two of a test video nothing is bright, in all others a square is.

    ``labels`` are masks of ``"pixels"``, of ``"frames"``, or of the frames of all videos ``"together"``.
    """
    for index in range(training):
        for frame in range(length):
            draw(root / f"training/frames/{index:02}/{frame}.jpg", 100 * index + frame)
    is_bright = np.arange(length) >= 2
    masks = np.zeros((length, 48, 64), dtype=np.uint8)
    masks[is_bright, 10:26, 20:36] = 1
    contents = {"pixels": masks, "frames": is_bright.astype(np.int8)}
    for index in range(2):
        for frame in range(length):
            draw(root / f"testing/frames/01_{index:04}/{frame}.jpg", 900 + 50 * index + frame, bright=is_bright[frame])
        if labels in contents:
            folder = root / f"testing/test_{labels.removesuffix('s')}_mask"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"01_{index:04}.npy", contents[labels])
    if labels == "together":
        np.save(root / "frame_labels_drawn.npy", np.concatenate([is_bright, is_bright])[None].astype(float))
    return root
