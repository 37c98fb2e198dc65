"""Folders of images in 2D, or of the frames of videos, with normal ones to train on and anomalous ones to test on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike

from ssmctb_monai.checks import check_choice
from ssmctb_monai.data.brats import COLOURS, BratsCase, dataset_folder
from ssmctb_monai.data.datalist import join_owners, split_patients
from ssmctb_monai.files import write_json

__all__ = ["IMAGE_SUFFIXES", "LAYOUTS", "find_images", "frame_files", "have_masks", "prepare_image_datalist"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LAYOUTS = ("auto", "mvtec", "oct", "frames")

TRAINING = {"mvtec": "train/good", "oct": "train/NORMAL", "frames": "training/frames"}

_OCT_NAME = re.compile(r"[A-Z]+-(\d+)-\d+")  # class, patient, number


@dataclass(frozen=True)
class _Image:
    """An image or a folder of frames, and what is known of it; of frames, the runs that are anomalous."""

    path: Path
    name: str
    patient: str
    anomalous: bool | list[list[int]]
    mask: Path | None = None


def prepare_image_datalist(
    dataset_dir: PathLike,
    datalist_file: PathLike,
    layout: str = "auto",
    *,
    validation: int | float = 0.25,
    seed: int = 0,
    skip_invalid: bool = False,
) -> Path:
    """Returns the datalist of a folder of images, and makes it where there is none yet.

    Known are the layouts of

    - MVTec AD, Bergmann et al., CVPR 2019, https://doi.org/10.1109/CVPR.2019.00982, of one class: ``train/good``,
      ``test/good``, ``test/DEFECT`` and ``ground_truth/DEFECT/NAME_mask.png``;
    - the retinal OCT images of Kermany et al., Cell 172(5), 2018, https://doi.org/10.1016/j.cell.2018.02.010:
      ``train/NORMAL``, ``test/NORMAL`` and ``test/CLASS``, without masks. Images are of the patient that their name
      has, as in ``CNV-1016042-1.jpeg``;
    - videos as Avenue, Lu et al., ICCV 2013, https://doi.org/10.1109/ICCV.2013.338, and ShanghaiTech, Liu et al., CVPR
      2018, https://doi.org/10.1109/CVPR.2018.00684, are given as frames: ``training/frames/VIDEO``, whose frames are
      all normal, and ``testing/frames/VIDEO``. What is anomalous is in ``testing/test_pixel_mask/VIDEO.npy``, shape
      (frames, height, width), else in ``testing/test_frame_mask/VIDEO.npy``, shape (frames,), else in one file
      ``frame_labels….npy`` for the frames of all test videos in the order of their names. A video is a volume, its
      frames are the slices.

    Normal images of ``train`` are the training and the validation part, images of ``test`` the test part. An image of
    ``train`` whose patient or whose copy is in ``test`` is left out, and logged; who shares an image is one patient.

    Args:
        dataset_dir: folder of the images.
        datalist_file: where the datalist is or is to be written.
        layout: ``"mvtec"``, ``"oct"``, ``"frames"`` or, as the folders are, ``"auto"``.
        validation: number or share of the normal training images' patients to validate on.
        seed: another seed gives another validation part.
        skip_invalid: leave anomalous images of MVTec AD out that lack a mask, and log them, instead of raising.

    Returns:
        Path of the datalist, for :func:`~ssmctb_monai.data.datalist.load_datalist`.

    Raises:
        NotADirectoryError: ``dataset_dir`` is not a folder.
        ValueError: The folder has another layout, no normal images to train on, anomalous ones without mask, videos
            whose labels are lacking, unreadable or of another number of frames, or two images of one name.

    Example:
        >>> prepare_image_datalist("mvtec/hazelnut", "runs/datalist.json")  # doctest: +SKIP
        PosixPath('runs/datalist.json')
    """
    datalist_file, root = Path(datalist_file), dataset_folder(dataset_dir)
    if datalist_file.is_file():
        logger.info("Using the split of %s; it stays as it is until the file is removed.", datalist_file)
        return datalist_file
    check_choice(LAYOUTS, layout=layout)
    if layout == "auto":
        layout = _layout_of(root)
    images = list({"mvtec": _mvtec, "oct": _oct, "frames": _frames}[layout](root))
    _check_names((image.name, image.path) for image in images)
    train: list[_Image] = []
    test: list[_Image] = []
    for image in images:
        (test if image.path.relative_to(root).parts[0] in ("test", "testing") else train).append(image)
    if not train:
        raise ValueError(f"There are no images in {root / TRAINING[layout]}.")
    if without := [image for image in test if layout == "mvtec" and image.anomalous and image.mask is None]:
        listed = ", ".join(str(image.path) for image in without[:5])
        if not skip_invalid:
            raise ValueError(
                f"{len(without)} anomalous images have no mask in {root / 'ground_truth'}: {listed}. Add the masks, or "
                "leave the images out with skip_invalid=True (in a bundle: --skip_invalid true)."
            )
        logger.warning("%d anomalous images without mask are left out: %s.", len(without), listed)
        test = [image for image in test if image not in without]
    patients = {case.case_id: case.patient_id for case in join_owners([_case(image) for image in (*train, *test)])}
    train, test = ([replace(image, patient=patients[image.name]) for image in part] for part in (train, test))
    tested = {image.patient for image in test}
    if left_out := [image.name for image in train if image.patient in tested]:
        listed = ", ".join(left_out[:5])
        logger.warning("%d training images are left out, whose patient is in test, too: %s.", len(left_out), listed)
    normal = {image.name: image for image in train if image.patient not in tested}
    if not normal:
        raise ValueError(f"Of all images in {root / TRAINING[layout]} the patients are in the test part, too.")
    parts = split_patients([_case(image) for image in normal.values()], validation=validation, test=0, seed=seed)
    sections = {name: [normal[case.case_id] for case in parts[name]] for name in ("training", "validation")}
    sections["test"] = test
    counts = ", ".join(f"{name} {len(part)}" for name, part in sections.items())
    description = f"Images in the layout {layout}, split with seed {seed}: {counts}"
    entries = {name: [_entry(image, root) for image in part] for name, part in sections.items()}
    write_json({"name": root.resolve().name, "description": description, **entries}, datalist_file)
    logger.info("Wrote %s: %s.", datalist_file, description)
    return datalist_file


def find_images(path: PathLike, exclude: PathLike | None = None, *, videos: bool = False) -> list[dict[str, Any]]:
    """Finds the images in a file or a folder, for inference; masks in ``ground_truth`` are passed over.

    Args:
        path: file or folder.
        exclude: folder that is not entered, such as the one that results are written to.
        videos: whether folders with images are videos, and these their frames.

    Returns:
        One dictionary an image or a video, in the order of their names: ``case_id``, ``patient_id`` and ``image``, a
        list of the one path.

    Raises:
        ValueError: There is no image, or two have one name.

    Example:
        >>> find_images("mvtec/hazelnut/test")[0]["case_id"]  # doctest: +SKIP
        'crack_000'
    """
    root = Path(path).expanduser().absolute()
    files = [root] if root.is_file() else _files(root, deep=True)
    left_out = None if exclude is None else Path(exclude).expanduser().absolute()
    parent = root.parent if root.is_file() else root
    kept = [
        file
        for file in files
        if "ground_truth" not in file.relative_to(parent).parts and (left_out is None or left_out not in file.parents)
    ]
    if not kept:
        raise ValueError(f"There is no image in {root}; known are {', '.join(IMAGE_SUFFIXES)}.")
    if videos:
        kept = list(dict.fromkeys(file.parent for file in kept))
    names = {file: _name(file, parent) or parent.name for file in kept}
    _check_names((name, file) for file, name in names.items())
    return [{"case_id": name, "patient_id": name, "image": [str(file)]} for file, name in names.items()]


def frame_files(folder: PathLike) -> list[Path]:
    """Lists the frames of a video in their order, with numbers in names of one length or not.

    Args:
        folder: folder of the frames.

    Example:
        >>> [file.name for file in frame_files("testing/frames/01")][8:]  # doctest: +SKIP
        ['9.jpg', '10.jpg', '11.jpg']
    """
    return sorted(_files(Path(folder)), key=lambda path: (len(path.stem), path.stem))


def load_labels(file: PathLike) -> np.ndarray:
    """Opens the labels of frames.

    Args:
        file: a ``.npy``.

    Returns:
        The numbers, on the disk, the first axis that of the frames.

    Raises:
        ValueError: The file holds no array of finite numbers of at least 0; it is named.

    Example:
        >>> load_labels("testing/test_frame_mask/01.npy").shape  # doctest: +SKIP
        (1439,)
    """
    problem = f"{file} holds no labels of frames, an array of numbers of at least 0 as np.save writes it."
    try:
        labels = np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(problem) from error
    is_numeric = isinstance(labels, np.ndarray) and labels.dtype.kind in "buif"
    if not is_numeric or not (np.isfinite(labels) & (labels >= 0)).all():
        raise ValueError(problem)
    return np.atleast_1d(labels)


def have_masks(items: Iterable[Mapping[str, Any]]) -> bool:
    """Tells whether it is known where anomalies are, not only which images have some.

    Args:
        items: items of a datalist.

    Example:
        >>> have_masks([{"anomalous": False}, {"anomalous": True, "label": "000_mask.png"}])
        True
    """
    return all("label" in item for item in items if item.get("anomalous", True))


def _check_names(named: Iterable[tuple[str, Path]]) -> None:
    paths: dict[str, Path] = {}
    for name, path in named:
        if other := paths.get(name):
            raise ValueError(f"{other} and {path} would both have the name {name}: rename one of them.")
        paths[name] = path


def _layout_of(root: Path) -> str:
    if found := [layout for layout, folder in TRAINING.items() if (root / folder).is_dir()]:
        return found[0]
    classes = sorted(folder.name for folder in root.iterdir() if (folder / "train/good").is_dir())
    advice = f"; name one class, such as {root / classes[0]}" if classes else ""
    raise ValueError(
        f"{root} has neither train/good, as a class of MVTec AD has, nor train/NORMAL, as the OCT images have, nor "
        f"training/frames, as videos have{advice}."
    )


def _mvtec(root: Path) -> Iterator[_Image]:
    for file in _files(root / "train/good"):
        yield _Image(file, name := _name(file, root), name, anomalous=False)
    for folder in _folders(root / "test"):
        masks = {path.stem: path for path in _files(root / "ground_truth" / folder.name)}
        for file in _files(folder):
            mask = masks.get(f"{file.stem}_mask")
            yield _Image(file, name := _name(file, root), name, folder.name != "good", mask)


def _oct(root: Path) -> Iterator[_Image]:
    for folder in [root / "train/NORMAL", *_folders(root / "test")]:
        for file in _files(folder):
            match = _OCT_NAME.fullmatch(file.stem)
            name = _name(file, root)
            yield _Image(file, name, match[1] if match else name, anomalous=folder.name != "NORMAL")


def _frames(root: Path) -> Iterator[_Image]:
    for folder in _folders(root / "training/frames"):
        if frame_files(folder):
            yield _Image(folder, name := _name(folder, root), name, anomalous=False)
    videos = {folder: len(files) for folder in _folders(root / "testing/frames") if (files := frame_files(folder))}
    places = [root / "testing" / kind for kind in ("test_pixel_mask", "test_frame_mask")]
    joined = sorted(path for folder in (root, root / "testing") for path in folder.glob("frame_labels*.npy"))
    first = 0
    for folder, count in videos.items():
        own = [path for place in places if (path := place / f"{folder.name}.npy").is_file()]
        if not own and len(joined) != 1:
            raise ValueError(
                f"{folder} needs labels of its frames: {' or '.join(str(place) for place in places)} with a "
                f"{folder.name}.npy, or one frame_labels….npy of all test videos in {root}."
            )
        labels = load_labels(own[0]) if own else load_labels(joined[0]).ravel()
        expected = count if own else sum(videos.values())
        if len(labels) != expected:
            raise ValueError(f"{(own or joined)[0]} has labels of {len(labels)} frames, but there are {expected}.")
        of_video = labels if own else labels[first : first + count]
        first += count
        is_anomalous = (np.asarray(of_video).reshape(count, -1) > 0).any(axis=1)
        ends = np.flatnonzero(np.diff(is_anomalous, prepend=False, append=False))
        mask = own[0] if own and own[0].parent == places[0] else None
        yield _Image(folder, name := _name(folder, root), name, ends.reshape(-1, 2).tolist(), mask)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _files(folder: Path, deep: bool = False) -> list[Path]:
    paths: Sequence[Path] = sorted(folder.glob("**/*" if deep else "*"))
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]


def _name(file: Path, root: Path) -> str:
    path = file.relative_to(root)
    return "_".join((path if file.is_dir() else path.with_suffix("")).parts)


def _case(image: _Image) -> BratsCase:
    return BratsCase(image.name, image.patient, {"image": image.path}, None, None, {})


def _entry(image: _Image, root: Path) -> dict[str, Any]:
    path = image.path.relative_to(root).as_posix()
    return {
        "case_id": image.name,
        "patient_id": image.patient,
        "image": dict.fromkeys(COLOURS, path),
        "channels": {name: max(0, index - 1) for index, name in enumerate(COLOURS)},  # grey, red, green, blue
        **({"label": image.mask.relative_to(root).as_posix()} if image.mask else {}),
        "anomalous": image.anomalous,
    }
