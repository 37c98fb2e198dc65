"""Writes the bundles' configurations and docs from their sources: ``python -m bundles [--check]``.

MONAI's own macros for parts of other files are resolved against the working directory, but a bundle must run from
anywhere, so that each file has to hold all that it needs. The parts lie once in ``sources``:

- ``common.json`` and ``2d.json`` or ``3d.json`` hold what the workflows of a bundle share, ``use.json`` what evaluation
  and inference share, ``train.json``, ``evaluate.json`` and ``inference.json`` what a workflow has alone. Later ones
  replace values of earlier ones, dictionaries are merged. A workflow leaves out what it does not refer to.
- ``systems/NAME.json`` is written as an overlay, ``configs/NAME.json``; that of DRAEM is part of ``train.json``, too.
  What differs by dimension stands in it below ``2d`` and ``3d``; what it has from another one, whose name is at
  ``extends``, is left out. One with a dimension at ``only`` is written for its bundle alone.
- ``overlays/NAME.json`` is written as it stands.
- ``docs/README.md`` is a template of Jinja for ``docs/README.md``, which also has the record of the shipped network.

A value ``%sources#ID`` becomes a copy of what the bundle has at that id.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).parent
BUNDLES = {"brats2d": "2d", "brats3d": "3d"}
WORKFLOWS = {"train": ["train"], "evaluate": ["use", "evaluate"], "inference": ["use", "inference"]}
BASE_SYSTEM = "draem"
WIDTH = 120


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m bundles", description="Writes configurations and docs.")
    parser.add_argument("--check", action="store_true", help="write nothing, list what is out of date and end with 1")
    check = parser.parse_args().check
    contents = dict(all_contents())
    outdated = [path for path, text in contents.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in outdated:
        print(path.relative_to(ROOT.parent))
        if not check:
            path.write_text(contents[path], encoding="utf-8")
    sys.exit(check and bool(outdated))


def all_contents() -> Iterator[tuple[Path, str]]:
    """Yields every file that is written, with its text."""
    for bundle, dims in BUNDLES.items():
        configs = ROOT / bundle / "configs"
        shared = merged(read("common", dims), read(f"{dims}", dims))
        sources = merged(shared, read(f"systems/{BASE_SYSTEM}", dims))
        for workflow, parts in WORKFLOWS.items():
            own = [read(part, dims) for part in parts]
            base = sources if workflow == "train" else shared
            config = merged(base, *own)
            kept = {key for part in own for key in part} | {"imports", "bundle_root"}
            yield configs / f"{workflow}.json", as_json(ordered(pruned(filled(config, sources), kept))) + "\n"
        for name in ("systems", "overlays"):
            for path in sorted((ROOT / "sources" / name).glob("*.json")):
                content = read(f"{name}/{path.stem}", dims)
                if content.pop("only", dims) == dims:
                    yield configs / path.name, as_json(filled(content, sources)) + "\n"
        template = (ROOT / "sources/docs/README.md").read_text("utf-8")
        environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        record = json.loads((ROOT / bundle / "models/model_record.json").read_text("utf-8"))
        text = environment.from_string(template).render(bundle=bundle, dims=int(dims[0]), config=sources, record=record)
        yield ROOT / bundle / "docs/README.md", text


def read(name: str, dims: str) -> dict[str, Any]:
    """Reads a source, with what it has for a dimension."""
    content = json.loads((ROOT / "sources" / f"{name}.json").read_text("utf-8"))
    by_dims = {key: content.pop(key, {}) for key in BUNDLES.values()}
    base = content.pop("extends", None)
    return merged({} if base is None else read(f"systems/{base}", dims), content, by_dims[dims])


def merged(*configs: Mapping[str, Any]) -> dict[str, Any]:
    """Merges dictionaries at every depth; of other values, and of two parts of different kinds, the last one counts."""
    result: dict[str, Any] = {}
    for config in configs:
        for key, value in config.items():
            before = result.get(key)
            both = isinstance(value, Mapping) and isinstance(before, Mapping)
            is_another = both and value.get("_target_", before.get("_target_")) != before.get("_target_")
            result[key] = merged(before, value) if both and not is_another else value
    return result


def filled(config: Any, sources: Mapping[str, Any]) -> Any:
    """Puts copies of the sources' parts where they are asked for."""
    if isinstance(config, Mapping):
        return {key: filled(value, sources) for key, value in config.items()}
    if isinstance(config, str) and config.startswith("%sources#"):
        part: Any = sources
        for key in config.split("#")[1:]:
            part = part[key]
        return part
    return config


def texts(config: Any) -> Iterator[str]:
    """Yields all texts of a configuration."""
    if isinstance(config, str):
        yield config
    for value in config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ():
        yield from texts(value)


def pruned(config: Mapping[str, Any], kept: set[str]) -> dict[str, Any]:
    """Leaves out what nothing refers to, beginning at the ids that are kept, and imports that no expression names."""
    needed, found = set(kept), set(kept)
    while found:
        referred = {id for key in found for text in texts(config[key]) for id in re.findall(r"@(\w+)", text)}
        found = (referred & config.keys()) - needed
        needed |= found
    result = {key: value for key, value in config.items() if key in needed}
    expressions = [text for key in result if key != "imports" for text in texts(result[key]) if text.startswith("$")]
    named = {line: re.split(r"[ .]", line)[-1] for line in result["imports"]}
    result["imports"] = [
        line for line, name in named.items() if re.search(rf"(?<![\w.@#]){name}[.(]", str(expressions))
    ]
    return result


def ordered(config: Mapping[str, Any]) -> dict[str, Any]:
    """Puts plain options before parts, and what is run last."""
    first = ("imports", "bundle_root")
    last = ("initialize", "training", "thresholding", "evaluating", "inference", "run")

    def place(key: str) -> tuple[int, int]:
        if key in first or key in last:
            return (0, first.index(key)) if key in first else (3, last.index(key))
        value = config[key]
        is_part = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(x, Mapping) for x in value))
        return (2 if is_part else 1), 0

    return {key: config[key] for key in sorted(config, key=place)}


def as_json(value: Any, indent: int = 0, used: int = 0) -> str:
    """Writes JSON with what fits in a line on one; ``used`` characters stand before and behind it."""
    line = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, Mapping | list) or (indent and indent + used + len(line) <= WIDTH):
        return line
    inner = indent + 4
    if isinstance(value, list):
        parts = [as_json(item, inner, 1) for item in value]
    else:
        names = [f"{json.dumps(key)}: " for key in value]
        parts = [name + as_json(item, inner, len(name) + 1) for name, item in zip(names, value.values(), strict=True)]
    opening, closing = "[]" if isinstance(value, list) else "{}"
    lines = ",\n".join(" " * inner + part for part in parts)
    return f"{opening}\n{lines}\n{' ' * indent}{closing}"


if __name__ == "__main__":
    main()
