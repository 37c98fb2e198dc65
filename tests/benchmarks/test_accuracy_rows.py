"""Rows and their data: what the tables' lines stand for, links, repaired labels, folds."""

import json
import re

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.accuracy.dataset import prepare_cases, write_fold
from benchmarks.accuracy.rows import ROWS, Row, settings_of, source_of
from benchmarks.accuracy.scores import scoring_network
from ssmctb_monai.networks.nets import DRAEM


@pytest.fixture
def dataset(tmp_path):
    """Six patients; returns a function that writes a file of one of them."""

    def write(patient, kind, shape=(4, 4, 3), origin=(0, 0, 0), directions=(1, 1, 1), lowest=0):
        affine = np.diag([*directions, 1.0])
        affine[:3, 3] = origin
        path = tmp_path / "data" / f"P{patient}" / f"P{patient}_{kind}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.arange(np.prod(shape)).reshape(shape) % 5 + lowest
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), path)
        return path

    for patient in range(6):
        write(patient, "flair")
        write(patient, "seg")
    return write


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    row = ROWS[name]
    assert {key.partition("#")[0] for key in row.overrides} <= settings_of(*row.config_files).keys()
    assert row.bundle[-2:] == re.search(r"\dd", name)[0]
    if row.reference is not None:
        other = ROWS[row.reference]
        assert (other.group, other.bundle, other.overlays) == (row.group, row.bundle, row.overlays)
        assert row.overrides != other.overrides
        own = {key: value for key, value in row.overrides.items() if other.overrides.get(key) != value}
        assert max(len({**own, "donors": 0}), len(other.overrides)) <= 2  # one change, which may take donors


def test_what_evaluation_alone_makes_use_of_is_not_trained_again():
    taken = {name: source_of(name) for name in ROWS}
    assert taken["brats2d-smoothing3"] == "brats2d"
    assert taken["brats2d-state-gap-ssim"] == "brats2d-state-gap"
    assert taken["brats3d-ssm-mask"] == "brats3d-ssm"
    for name in ("brats2d", "brats2d-avoid", "brats2d-ssm-published", "brats2d-future-gap-mean-smoothing6"):
        assert taken[name] is None


def test_rows_have_lines_of_their_own():
    assert len({(row.group, row.title) for row in ROWS.values()}) == len(ROWS)
    blocks = {f"brats{dims}d-{block}" for dims in (2, 3) for block in ("none", "sspcab", "both")}
    assert {*blocks, "brats2d", "brats3d", "brats2d-t1ce-none", "brats2d-four", "brats3d-mae", "lgg2d"} <= set(ROWS)


def test_an_overlay_changes_the_bundle_but_for_its_paths():
    plain, changed = (settings_of(*ROWS[name].config_files) for name in ("brats2d", "lgg2d"))
    assert "ckpt_dir" not in changed
    difference = {key: value for key, value in changed.items() if plain[key] != value}
    assert difference.keys() == {"background", "planes", "spacing", "smoothing"}
    assert difference["background"] == "skull"


def test_group_and_baseline():
    row = Row("", "brats", "brats2d", modalities=("t1ce", "flair"))
    assert (row.group, row.baseline) == ("BRATS, T1ce + FLAIR", "baseline_t1ce")


# ---------------------------------------------------------------------------------------------------------------- cases


def test_folds_of_sound_cases(dataset, tmp_path):
    before = prepare_cases(tmp_path / "data", tmp_path / "first", ["flair"])
    assert (list(before.repaired), before.left_out) == ([], {})
    assert [len(fold) for fold in before.folds] == [2, 2, 2]
    lost = before.folds[1][0].case_id
    (tmp_path / "data" / lost / f"{lost}_seg.nii.gz").unlink()
    after = prepare_cases(tmp_path / "data", tmp_path / "second", ["flair"])
    assert list(after.left_out) == [lost]
    names = [[case.case_id for case in fold] for fold in after.folds]
    assert names == [[case.case_id for case in fold if case.case_id != lost] for fold in before.folds]


def test_a_label_with_another_origin_gets_the_image_s(dataset, tmp_path):
    original = dataset(2, "seg", origin=(0, 7, 0))
    content = original.read_bytes()
    for _ in range(2):  # the second time it has been repaired before
        cases = prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"])
        assert list(cases.repaired) == ["P2"]
        assert cases.left_out == {}
    label = tmp_path / "links" / "P2" / "P2_seg.nii.gz"
    assert original.read_bytes() == content
    np.testing.assert_array_equal(nibabel.load(label).affine, np.eye(4))
    np.testing.assert_array_equal(nibabel.load(label).get_fdata(), nibabel.load(original).get_fdata())
    assert (tmp_path / "links" / "P2" / "P2_flair.nii.gz").is_symlink()
    assert (tmp_path / "links" / "P1" / "P1_seg.nii.gz").is_symlink()


@pytest.mark.parametrize("wrong", [{"directions": (-1, 1, 1)}, {"shape": (4, 3, 4)}, {"directions": (1, 1, 2)}])
def test_other_labels_are_not_repaired(dataset, tmp_path, wrong):
    dataset(2, "seg", origin=(0, 7, 0), **wrong)
    cases = prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"])
    assert list(cases.repaired) == []
    assert list(cases.left_out) == ["P2"]


def test_a_case_with_another_problem_is_left_as_it_is(dataset, tmp_path):
    dataset(3, "flair").write_bytes(b"no image")
    dataset(4, "seg", lowest=-1)
    cases = prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"])
    assert list(cases.repaired) == []
    assert sorted(cases.left_out) == ["P3", "P4"]


def test_links_to_another_data_set(dataset, tmp_path):
    prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"])
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"links to .*data.*, not to .*moved.*: remove .*links"):
        prepare_cases(tmp_path / "moved", tmp_path / "links", ["flair"])
    with pytest.raises(NotADirectoryError, match="none"):
        prepare_cases(tmp_path / "none", tmp_path / "links", ["flair"])


def test_a_fold_without_cases(dataset, tmp_path):
    folds = prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"]).folds
    for case in folds[2]:
        dataset(int(case.case_id[1:]), "flair", shape=(5, 5, 5))
    with pytest.raises(ValueError, match=r"A fold of .* has no case"):
        prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"])


def test_datalist_of_a_fold(dataset, tmp_path):
    cases = prepare_cases(tmp_path / "data", tmp_path / "links", ["flair"])
    write_fold(cases, 1, tmp_path / "fold.json")
    content = json.loads((tmp_path / "fold.json").read_text())
    test = [case.case_id for case in cases.folds[1]]
    assert [entry["case_id"] for entry in content["test"]] == test
    assert content["validation"] == []
    assert [entry["case_id"] for entry in content["training"]] == [f"P{i}" for i in range(6) if f"P{i}" not in test]


# ---------------------------------------------------------------------------------------------------------- block score


def test_score_of_blocks_is_their_error():
    torch.manual_seed(0)
    network = DRAEM(2, reconstructive_width=8, discriminative_width=8, block="ssmctb").eval()
    block = network.reconstructive[1].stages[-1][-1]
    given = []
    block.register_forward_hook(lambda module, args, output: given.append(args[0]))
    image = torch.rand(2, 1, 32, 64)
    with torch.no_grad():
        one, other, both = (
            scoring_network(network, score)(image)
            for score in ("block:reconstructive", "block:discriminative", "block")
        )
        error = block.anomaly_map(given[0])
    assert error.max() > 1e-4
    torch.testing.assert_close(one, error / (1 + error), rtol=1e-5, atol=0)
    mean = (one / (1 - one) + other / (1 - other)) / 2
    torch.testing.assert_close(both, mean / (1 + mean))
    assert (one != other).any()
    hooks = [name for name, module in network.named_modules() if module._forward_hooks and module is not block]
    assert hooks == []
    assert len(block._forward_hooks) == 1


def test_score_of_the_image_is_its_first_modality():
    image = torch.rand(2, 3, 32, 64)
    network = DRAEM(2, 3, reconstructive_width=8, discriminative_width=8, block=None)
    torch.testing.assert_close(scoring_network(network, "image")(image), image[:, :1], rtol=0, atol=0)


def test_no_block_to_score_by():
    network = DRAEM(2, reconstructive_width=8, discriminative_width=8, block=None)
    with pytest.raises(ValueError, match="no block in DRAEM: take a row that has one"):
        scoring_network(network, "block")
    with pytest.raises(ValueError, match="no block in reconstructive"):
        scoring_network(network, "block:reconstructive")
