"""Tasks on stacks of slices, read off from slices that hold their own number."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from monai.data import MetaTensor

from ssmctb_monai.transforms import RandSliceTaskd

SIZE = 20
QUESTIONS = ["reversed", "skipped", "permuted"]


@pytest.fixture(scope="module")
def samples():
    image = torch.arange(1.0, SIZE + 1).expand(1, 3, 2, SIZE)
    transform = RandSliceTaskd(num_hidden=4, num_skipped=5, num_pieces=3).set_random_state(0)
    return [transform({"image": image, "case_id": "A"}) for _ in range(400)]


def task_of(sample) -> tuple[str, int]:
    asked = (sample["answers"] >= 0).nonzero().flatten().tolist()
    assert len(asked) <= 1
    assert bool(sample["hidden"].any()) == (not asked)
    return (QUESTIONS[asked[0]], int(sample["answers"][asked[0]])) if asked else ("hidden", 1)


def slices_of(image) -> list[int]:
    assert image.shape == (1, 3, 2, 15)
    assert (image == image[:, :1, :1]).all()
    return image[0, 0, 0].long().tolist()


def test_tasks_and_answers_are_drawn_alike(samples):
    number = Counter(map(task_of, samples))
    assert 70 < number["hidden", 1] < 130
    assert all(30 < number[question, answer] < 70 for question in QUESTIONS for answer in (0, 1))


def test_what_is_done_to_a_stack(samples):
    starts, steps = set(), Counter()
    for sample in samples:
        (task, answer), clean, found = task_of(sample), slices_of(sample["image_clean"]), slices_of(sample["image"])
        assert clean == list(range(clean[0], clean[0] + 15))
        starts.add(clean[0])
        if task == "hidden":
            places = sample["hidden"].flatten().nonzero().flatten().tolist()
            assert sample["hidden"].shape == (1, 1, 1, 15)
            assert places == list(range(places[0], places[0] + 4))
            assert found == [0 if place in places else index for place, index in enumerate(clean)]
        elif not answer:
            assert found == clean
        elif task == "reversed":
            assert found == clean[::-1]
        elif task == "skipped":
            assert found == sorted(set(found))
            assert found[0] == 1
            assert found[-1] == SIZE
            steps.update(torch.tensor(found).diff().tolist())
        else:
            pieces = [clean[:5], clean[5:10], clean[10:]]
            assert found != clean
            assert sorted(found[start : start + 5] for start in (0, 5, 10)) == pieces
        assert sample["case_id"] == "A"
    assert starts == set(range(1, 7))
    assert set(steps) >= {1, 2, 3}


def test_all_places_are_hidden(samples):
    hidden = torch.stack([sample["hidden"].flatten() for sample in samples]).sum(dim=0)
    assert (hidden > 0).all()


def test_same_seed_same_tasks():
    draws = [RandSliceTaskd(num_hidden=8, num_skipped=4).set_random_state(3) for _ in range(2)]
    image = torch.rand(2, 4, 4, 30)
    for _ in range(5):
        first, again = (draw({"image": image}) for draw in draws)
        assert all(torch.equal(first[key], again[key]) for key in first)


def test_faults_are_named():
    for arguments, message in (
        ({"num_hidden": 0}, "num_hidden must be at least 1"),
        ({"num_skipped": 0}, "num_skipped must be at least 1"),
        ({"num_pieces": 1}, "num_pieces must be at least 2"),
        ({"keys": ["image", "brain"]}, "takes one key"),
    ):
        with pytest.raises(ValueError, match=message):
            RandSliceTaskd(**arguments)
    image = MetaTensor(torch.rand(1, 4, 4, 18), meta={"filename_or_obj": "case_flair.nii.gz"})
    with pytest.raises(ValueError, match=r"case_flair\.nii\.gz has 18 slices: without the 16 that are skipped"):
        RandSliceTaskd()({"image": image})
    short = RandSliceTaskd(num_hidden=6, num_skipped=12)
    with pytest.raises(ValueError, match=r"case_flair\.nii\.gz has 18 slices: .* num_hidden 6 .* larger roi_size"):
        short({"image": image})
    short({"image": torch.rand(1, 4, 4, 19)})
