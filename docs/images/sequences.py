"""Draws the picture of docs/sequences.md: which slices each system gets and which it must give, on the demo data.

From the repository's root:

    python docs/images/sequences.py
"""

import matplotlib.pyplot as plt
import torch
from monai.transforms import CropForegroundd
from slices import healthy_cases, save_grey

from ssmctb_monai.transforms import RandSlicesd, RandSliceTaskd

RUNS = {  # context of the slice, by what the row shows
    "future, mnad:\nfour slices beside it": (-4, -3, -2, -1),
    "the same 32 mm away,\non both sides": (-16, 16),
}
TASKS = {"middle slices": None, "order": 0, "skipped slices": 1, "jigsaw": 2}  # and the question of each
SIZE = (76, 92)


def task_of(image: torch.Tensor, question: int | None) -> dict[str, torch.Tensor]:
    """Draws until it is the task, and the answer yes."""
    draw = RandSliceTaskd().set_random_state(6)
    while True:
        sample = draw({"image": image})
        if sample["hidden"].any() if question is None else sample["answers"][question] == 1:
            return sample


def show(part: plt.Axes, image: torch.Tensor, title: str, is_given: bool) -> None:
    """Shows a slice; one that a network must give has a frame."""
    part.imshow(torch.rot90(image), cmap="gray", vmin=0, vmax=1)
    part.set_title(title, fontsize=9)
    part.spines[:].set(visible=not is_given, linewidth=3, color="0.55")


case = CropForegroundd(["image", "label", "brain"], source_key="brain")(next(healthy_cases(spacing=2.0)))
columns = 1 + max(map(len, RUNS.values()))
figure, axes = plt.subplots(len(RUNS) + 1, columns, figsize=(9, 6.8), layout="constrained")
for part in axes.flat:
    part.set(xticks=[], yticks=[])
    part.spines[:].set_visible(False)
for (name, context), parts in zip(RUNS.items(), axes, strict=False):
    draw = RandSlicesd(roi_size=SIZE, planes="axial", context=context, min_brain=0.4).set_random_state(1)
    target, *others = draw(case)[0]["image"]
    for part, image, offset in zip(parts, others, context, strict=False):
        show(part, image, f"gets slice t {'+-'[offset < 0]} {abs(offset)}", is_given=True)
    show(parts[-1], target, "gives slice t", is_given=False)
    parts[0].set_ylabel(name, fontsize=9)
stack = case["image"][..., -64:]
middle = stack.shape[2] // 2
for (name, question), part in zip(TASKS.items(), axes[-1], strict=False):
    sample = task_of(stack, question)
    show(part, sample["image"][0, :, middle], f"{name}:\n{'gives them' if question is None else 'answers yes'}", True)
clean = task_of(stack, None)["image_clean"]
show(axes[-1, -1], clean[0, :, middle], "\nthe stack as it was", is_given=True)
axes[-1, 0].set_ylabel("ssmtl:\nstacks, from the front", fontsize=9)
save_grey(figure, "sequences", dpi=90)
