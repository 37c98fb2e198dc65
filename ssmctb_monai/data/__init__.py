"""Data: BRATS folders, patient-level datalists, readers and the demo data set."""

from ssmctb_monai.data.brats import (
    BratsCase,
    canonical_modalities,
    canonical_modality,
    dataset_folder,
    find_cases,
    shared_modalities,
)
from ssmctb_monai.data.checks import InvalidCasesError, check_cases
from ssmctb_monai.data.datalist import (
    datalist_path,
    load_datalist,
    patient_folds,
    prepare_datalist,
    split_patients,
    write_datalist,
)
from ssmctb_monai.data.datasets import LesionFreeDataset, PreparedDataset, ValidCases
from ssmctb_monai.data.demo import is_demo_dataset, make_demo_dataset
from ssmctb_monai.data.dicom import write_parametric_map, write_segmentation
from ssmctb_monai.data.image_folders import find_images, frame_files, have_masks, prepare_image_datalist
from ssmctb_monai.data.patients import patient_of
from ssmctb_monai.data.readers import SimpleITKReader
from ssmctb_monai.data.scans import find_scans
from ssmctb_monai.data.shards import process_device, take_shard

__all__ = [
    "BratsCase",
    "InvalidCasesError",
    "LesionFreeDataset",
    "PreparedDataset",
    "SimpleITKReader",
    "ValidCases",
    "canonical_modalities",
    "canonical_modality",
    "check_cases",
    "datalist_path",
    "dataset_folder",
    "find_cases",
    "find_images",
    "find_scans",
    "frame_files",
    "have_masks",
    "is_demo_dataset",
    "load_datalist",
    "make_demo_dataset",
    "patient_folds",
    "patient_of",
    "prepare_datalist",
    "prepare_image_datalist",
    "process_device",
    "shared_modalities",
    "split_patients",
    "take_shard",
    "write_datalist",
    "write_parametric_map",
    "write_segmentation",
]
