"""Demo data: synthetic multi-modal brain MRI of patients with and without a tumour, made on first use."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation
from scipy.special import expit
from skimage.graph import MCP_Geometric

from ssmctb_monai.progress import Progress

__all__ = ["make_demo_dataset"]

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

# Raise it with every change that alters the data: the version is part of the name of the cache folder.
_VERSION = 1
_SPLIT = {"training": 6, "validation": 3, "test": 3}
_SPACING = 2  # mm
_NECROTIC, _OEDEMA, _ENHANCING = 1, 2, 4  # the labels of BraTS 2021

# Mean intensity of each tissue, and the relative change that oedema of strength 1 makes to the tissue that it soaks.
_TISSUES = ("csf", "grey", "white", "vessel", "necrotic", "enhancing")
_INTENSITIES = {
    "flair": (0.25, 0.98, 0.82, 0.95, 0.55, 0.88),
    "t1": (0.35, 0.74, 1.00, 0.70, 0.55, 0.85),
    "t1ce": (0.35, 0.74, 0.90, 1.90, 0.55, 1.80),
    "t2": (1.00, 0.44, 0.33, 0.45, 0.60, 0.45),
}
_OEDEMA_CHANGE = {"flair": 1.0, "t1": -0.35, "t1ce": -0.30, "t2": 1.2}

_README = """\
Demo data of ssmctb_monai: synthetic brain MRI in the layout of BraTS 2021. Not for clinical use.

Made by random warps of the ICBM 152 2009 tissue maps, as the package nilearn holds them; intensities and lesions are
synthetic. No patient's data are in it. Please cite the atlas:
  Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54(1):313-327, 2011,
  https://doi.org/10.1016/j.neuroimage.2010.07.033
  Fonov et al., Unbiased nonlinear average age-appropriate brain templates from birth to adulthood,
  NeuroImage 47, Supplement 1:S102, 2009, https://doi.org/10.1016/S1053-8119(09)70884-5

The atlas: Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute,
McGill University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose
and without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill
University make no representations about the suitability of this software for any purpose. It is provided "as is"
without express or implied warranty. The authors are not responsible for any data loss, equipment damage, property loss,
or injury to subjects or patients resulting from the use or misuse of this software package.
"""


class _Template(NamedTuple):
    maps: FloatArray  # fuzzy maps of CSF, grey matter, white matter and the lateral ventricles (a part of CSF)
    affine: NDArray[np.float64]


class _Lesion(NamedTuple):
    volume: float  # ml
    strength: float  # of the oedema


def is_demo_dataset(folder: str | os.PathLike[str]) -> bool:
    """Tells whether a folder is that of the demo data, in its default place.

    Args:
        folder: folder of a data set.

    Example:
        >>> is_demo_dataset("/data/BraTS2021")
        False
    """
    return Path(folder).name.startswith(f"demo-v{_VERSION}-seed") and Path(folder).parent.name == "ssmctb_monai"


def make_demo_dataset(folder: str | os.PathLike[str] | None = None, seed: int = 0) -> Path:
    """Returns the folder of the demo data, which are made on first use (no download).

    The anatomy comes from the ICBM 152 atlas: Fonov et al., "Unbiased average age-appropriate atlases for pediatric
    studies", NeuroImage 2011, https://doi.org/10.1016/j.neuroimage.2010.07.033. Twelve synthetic patients (6 training,
    3 validation, 3 test) differ in shape, age, bias field, noise and intensity scale. All validation and test patients
    and half of the training patients have a tumour. The files follow BraTS 2021 (FLAIR, T1, T1ce, T2 and labels 0, 1,
    2, 4), on a 2 mm grid; ``datalist.json`` in the folder holds the split.

    Args:
        folder: the dataset's own folder; by default a folder named after version and seed in the user's cache folder.
        seed: the same seed gives the same voxels.

    Raises:
        ImportError: when the data must be made and nilearn, which holds the atlas, is missing.
        FileExistsError: when ``folder`` holds something else.
    """
    name = f"demo-v{_VERSION}-seed{seed}"
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "ssmctb_monai" / name
    folder = Path(folder)
    logger.info("Demo data (synthetic; a data set of your own goes by its folder): %s", folder)
    if _is_complete(folder, name):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something other than the data set {name}: remove it or name another.")

    logger.info("Making the demo data, once; this takes about half a minute.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A rename is atomic: others see a whole data set or none, and a killed run leaves only its temporary folder.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        _write_dataset(made, name, seed)
        try:
            made.replace(folder)
        except OSError:
            if not _is_complete(folder, name):  # otherwise another process was faster
                raise
    return folder


def _is_complete(folder: Path, name: str) -> bool:
    datalist = folder / "datalist.json"
    return datalist.is_file() and json.loads(datalist.read_text()).get("name") == name


def _write_dataset(folder: Path, name: str, seed: int) -> None:
    template = _load_template()
    cases = [f"DemoBraTS_{number:05d}" for number in range(1, sum(_SPLIT.values()) + 1)]

    def write(index: int, lesion: _Lesion | None) -> None:
        images, label = _make_patient(template, np.random.default_rng([seed, index]), lesion)
        case_folder = folder / cases[index]
        case_folder.mkdir(parents=True)
        for modality, array in {**images, "seg": label}.items():
            image = nib.Nifti1Image(array, template.affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, case_folder / f"{cases[index]}_{modality}.nii.gz")

    progress = Progress("Made patient", len(cases))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, range(len(cases)), _plan_lesions(np.random.default_rng(seed))):
            progress.step()

    datalist: dict[str, Any] = {
        "name": name,
        "description": "Synthetic brain MRI made from the ICBM 152 atlas; not for clinical use. See README.txt.",
    }
    remaining = iter(cases)
    for subset, size in _SPLIT.items():
        datalist[subset] = [_datalist_entry(next(remaining)) for _ in range(size)]
    (folder / "datalist.json").write_text(json.dumps(datalist, indent=2))
    (folder / "README.txt").write_text(_README)


def _datalist_entry(case: str) -> dict[str, Any]:
    return {
        "case_id": case,
        "patient_id": case,
        "image": {modality: f"{case}/{case}_{modality}.nii.gz" for modality in _INTENSITIES},
        "label": f"{case}/{case}_seg.nii.gz",
    }


def _plan_lesions(rng: np.random.Generator) -> Iterator[_Lesion | None]:
    """Spreads volumes (2 to 100 ml) and strengths over their range in each subset; half the training set is healthy."""
    for order, (subset, size) in enumerate(_SPLIT.items()):
        count = size // 2 if subset == "training" else size
        volumes = 2 * 50 ** ((rng.permutation(count) + (order + rng.random(count)) / len(_SPLIT)) / count)
        strengths = 0.25 + 0.35 * (rng.permutation(count) + rng.random(count)) / count
        yield from (_Lesion(*pair) for pair in zip(volumes, strengths, strict=True))
        yield from [None] * (size - count)


def _load_template() -> _Template:
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    except ImportError as error:
        raise ImportError('The demo data need nilearn: pip install "ssmctb_monai[demo]"') from error
    t1 = load_mni152_template(resolution=_SPACING)
    grey, white = (load(resolution=_SPACING).get_fdata() for load in (load_mni152_gm_template, load_mni152_wm_template))
    # The opening drops the crumbs that resampling leaves around the brain.
    brain = ndimage.binary_opening(t1.get_fdata() > 0.2)
    csf = np.clip(1 - grey - white, 0, 1)
    deep_csf, _ = ndimage.label(brain & (csf > 0.5) & (ndimage.distance_transform_edt(brain) > 20 / _SPACING))
    lateral_ventricles = np.argsort(np.bincount(deep_csf.ravel())[1:])[-2:] + 1  # the two largest pools
    maps = np.stack([csf, grey, white, np.isin(deep_csf, lateral_ventricles)]) * brain
    return _Template(maps.astype(np.float32), t1.affine)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatArray:
    """Gaussian random field of zero mean and unit variance, smoothed by ``scale`` mm."""
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32))
    noise = fft.irfftn(ndimage.fourier_gaussian(spectrum, scale / _SPACING, n=shape[-1]), shape)
    return (noise - noise.mean()) / noise.std()


def _make_patient(
    template: _Template, rng: np.random.Generator, lesion: _Lesion | None
) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8]]:
    """Makes the images of one patient by modality, and the label."""
    age = rng.random()
    shape = template.maps.shape[1:]
    height = (np.arange(shape[2]) * _SPACING + template.affine[2, 3])[None, None, :]  # MNI z, mm
    # Tumours start in supratentorial white matter.
    start = rng.choice(np.argwhere((template.maps[2] > 0.8) & (height > 0)))
    points = _warp(rng, template.maps, age)
    if lesion is not None:  # mass effect, about as wide as a ball of the lesion's volume
        points = _expand(points, start, amount=0.25, radius=6 * np.cbrt(lesion.volume))
    csf, grey, white, ventricles = (
        ndimage.map_coordinates(tissue, points, order=1, output=np.float32) for tissue in template.maps
    )
    brain = ndimage.binary_opening(csf + grey + white > 0.5)

    # The atlas is an average over people. Sharpening with noise in the log-odds gives each patient their own folds,
    # and more weight on CSF gives the wide sulci and ventricles of age.
    tissues = np.stack([csf * np.exp(1.2 * age), grey, white]) ** 2
    for tissue in tissues:
        tissue *= np.exp(0.35 * _smooth_noise(rng, shape, 3))
    tissues *= brain / np.maximum(tissues.sum(0), 1e-6)

    label = np.zeros(shape, np.uint8)
    # Small white-matter hyperintensities around the ventricles come with age, and are no lesions.
    periventricular = ndimage.gaussian_filter(ventricles, 5 / _SPACING)
    oedema = age * tissues[2] * expit(15 * periventricular + 1.5 * _smooth_noise(rng, shape, 3) - 5)
    if lesion is not None:
        nearest = np.argmin(((points - start[:, None, None, None]) ** 2).sum(0))
        label, extent = _grow_lesion(rng, tissues, np.unravel_index(nearest, shape), lesion.volume)
        texture = np.exp(0.25 * _smooth_noise(rng, shape, 5))
        oedema = np.maximum(oedema, lesion.strength * texture * extent * (1 - tissues[0]))

    solid = [_vessels(rng, brain), *(ndimage.gaussian_filter((label == k) * 1.0, 0.5) for k in (_NECROTIC, _ENHANCING))]
    mixture = np.stack([*tissues, *solid])
    mixture[:3] *= np.clip(1 - mixture[3:].sum(0), 0, 1)
    images = {modality: _image(rng, modality, mixture, oedema, brain) for modality in _INTENSITIES}
    return images, label


def _warp(rng: np.random.Generator, maps: FloatArray, age: float) -> FloatArray:
    """Returns the point of the template (in voxels) that each voxel of the patient shows."""
    shape = maps.shape[1:]
    grid = np.indices(shape, dtype=np.float32)
    centre = np.array(ndimage.center_of_mass(maps[:3].sum(0)))
    rotation = Rotation.from_euler("xyz", rng.normal(0, 2, 3), degrees=True).as_matrix()
    matrix = rotation @ np.diag(1 / rng.normal(1, 0.04, 3))
    points = np.tensordot(matrix, grid - centre[:, None, None, None], 1) + centre[:, None, None, None]
    for scale, amplitude in ((30, 2.5), (12, 1.2)):  # mm; gentle enough not to fold
        points += amplitude / _SPACING * np.stack([_smooth_noise(rng, shape, scale) for _ in range(3)])
    ventricles = np.array(ndimage.center_of_mass(maps[3]))
    return _expand(points, ventricles, amount=0.3 * age, radius=30).astype(np.float32)


def _expand(points: FloatArray, centre: NDArray[Any], amount: float, radius: float) -> FloatArray:
    """Enlarges what lies around ``centre`` (in voxels), by a factor of 1 / (1 - amount) at the most."""
    offset = points - centre[:, None, None, None]
    weight = np.exp(-(offset**2).sum(0) / (2 * (radius / _SPACING) ** 2))
    return points - amount * weight * offset


def _grow_lesion(
    rng: np.random.Generator, tissues: NDArray[Any], start: tuple[Any, ...], volume: float
) -> tuple[NDArray[np.uint8], FloatArray]:
    """Grows a core from ``start``, and oedema from the core; returns the label and the soft extent of the oedema."""
    csf, grey, white = tissues
    tissue = grey + white > 0.5
    voxels = round(volume * 1000 / _SPACING**3)

    def spread(resistance: FloatArray, starts: Sequence[Any] | NDArray[Any], count: int) -> tuple[FloatArray, float]:
        """Returns the arrival time of a front that crosses the tissue, and the time when it has taken ``count``."""
        cost = np.where(csf + grey + white > 0, resistance, -1)  # MCP never enters a negative cost
        coverage = 3 * count / cost.size + 0.001  # far beyond the edge, and much faster than the whole brain
        arrival, _ = MCP_Geometric(cost).find_costs(starts, max_coverage=coverage)
        return arrival, np.partition(arrival[tissue], count)[count]

    irregular = np.exp(0.5 * _smooth_noise(rng, csf.shape, 4))
    core_voxels = round(voxels * rng.uniform(0.1, 0.4))
    arrival, edge = spread(irregular * (1 + 6 * csf), [start], core_voxels)
    core = tissue & (arrival < edge)
    # Oedema follows the white matter, is slowed by the cortex and stopped by CSF.
    arrival, edge = spread(irregular**2 * (1 + 4 * grey + 15 * csf), np.argwhere(core), voxels)
    extent = expit((edge - arrival) / rng.uniform(0.3, 0.8))

    rim = rng.uniform(1.2, 2.5) * np.exp(0.5 * _smooth_noise(rng, csf.shape, 4))
    necrotic = ndimage.distance_transform_edt(core) > rim
    label = np.select([necrotic, core, tissue & (arrival < edge)], [_NECROTIC, _ENHANCING, _OEDEMA])
    return label.astype(np.uint8), extent.astype(np.float32)


def _vessels(rng: np.random.Generator, brain: NDArray[np.bool_]) -> FloatArray:
    """Veins on the surface of the brain, and the superior sagittal sinus along its upper midline."""
    rim = brain & ~ndimage.binary_erosion(brain)
    x, _, z = np.indices(brain.shape)
    centre = ndimage.center_of_mass(brain)
    sinus = (np.abs(x - centre[0]) < 6 / _SPACING) & (z > centre[2])
    veins = _smooth_noise(rng, brain.shape, 2.5) > 1.5
    return ndimage.gaussian_filter((rim & (sinus | veins)).astype(np.float32), 0.6)


def _image(
    rng: np.random.Generator, modality: str, mixture: FloatArray, oedema: FloatArray, brain: NDArray[np.bool_]
) -> NDArray[np.int16]:
    """Turn the fuzzy maps of tissues and oedema into the image of one modality, with a scanner's bias and noise."""
    shape = brain.shape
    means = np.array(_INTENSITIES[modality]) * rng.normal(1, 0.02, len(_TISSUES))
    image = np.tensordot(means, mixture, 1) * (1 + _OEDEMA_CHANGE[modality] * oedema)
    image *= 1 + 0.03 * _smooth_noise(rng, shape, 4) + 0.03 * _smooth_noise(rng, shape, 12)
    image *= np.exp(0.07 * _smooth_noise(rng, shape, 40))  # bias field
    noise = rng.uniform(0.01, 0.025) * rng.standard_normal((2, *shape))
    image = np.hypot(image + noise[0], noise[1])  # Rician
    maximum = rng.uniform(1000, 4000)
    image *= maximum / image[brain].max()
    return (np.clip(np.rint(image), 1, None) * brain).astype(np.int16)  # 0 in the background only
