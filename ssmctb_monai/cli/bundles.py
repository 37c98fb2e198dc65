"""The bundles as they come with the package: systems, weights, and the options that their docs describe."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOTS = (PACKAGE / "bundles", PACKAGE.parent / "bundles")  # of an installation, of a clone
NAMES = {2: "brats2d", 3: "brats3d"}


@dataclass(frozen=True)
class Bundle:
    """A bundle.

    Args:
        spatial_dims: number of spatial dimensions of its networks, 2 or 3.

    Raises:
        FileNotFoundError: when the package was installed without its bundles.

    Example:
        >>> Bundle(3).weights()["brats"].name
        'model.pt'
    """

    spatial_dims: int

    @property
    def name(self) -> str:
        """Name of the bundle, which is that of its folder."""
        return NAMES[self.spatial_dims]

    @cached_property
    def root(self) -> Path:
        """Folder of the bundle."""
        for root in ROOTS:
            if (root / self.name / "configs").is_dir():
                return root / self.name
        raise FileNotFoundError(f"There is no bundle {self.name} in {ROOTS[0]}: install ssmctb_monai anew.")

    def config(self, name: str) -> Path:
        """Returns the file of a configuration.

        Args:
            name: name of a workflow or overlay, such as ``"train"``.
        """
        return self.root / "configs" / f"{name}.json"

    def systems(self) -> dict[str, str]:
        """Returns the first sentence that the docs have on each system, by the name of its overlay."""
        found = re.findall(r"^- `configs/(\w+)\.json`: (.*?)(?=\n- |\n\n)", self._docs, re.M | re.S)
        described = {name: re.split(r"(?<=\.) (?=[A-Z])", _plain(" ".join(text.split())))[0] for name, text in found}
        configs = {file.stem: json.loads(file.read_text("utf-8")) for file in self.root.glob("configs/*.json")}
        names = {name for name, config in configs.items() if config.get("system", {}).get("name") == name}
        order = [*described, *sorted(names)]  # that of the docs, where one refers to the one before
        return {name: described.get(name, "") for name in dict.fromkeys(order) if name in names}

    def weights(self) -> dict[str, Path]:
        """Returns the checkpoints that come with the package, by what they were trained on."""
        return {self.name.removesuffix(f"{self.spatial_dims}d"): file for file in self.root.glob("models/model.pt")}

    def options(self, *sections: str) -> dict[str, str]:
        """Returns the options that the docs have in tables, each with its meaning and default.

        Args:
            sections: headings of the sections; what an earlier one has is left out of a later one.

        Returns:
            Meanings by option, such as ``"--margin"``, with a value where the table has one.
        """
        options: dict[str, str] = {}
        for section in sections:
            text = re.search(rf"^## {section}.*?(?=^## |\Z)", self._docs, re.M | re.S)
            for names, default, meaning in re.findall(
                r"^\| (`--.*?) \| (.*?) \| (.*) \|$", text[0] if text else "", re.M
            ):
                options.setdefault(_plain(names), f"{_plain(meaning)} [{_plain(default)}]")
        return options

    @cached_property
    def _docs(self) -> str:
        return (self.root / "docs/README.md").read_text("utf-8")


def _plain(markdown: str) -> str:
    """Takes the marks of code and the addresses of links away."""
    return re.sub(r"\[([^][]*)\]\(.*?\)", r"\1", markdown.replace("`", ""))
