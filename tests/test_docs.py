"""The examples in README and docs run as they stand."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def blocks(document: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(document.read_text(encoding="utf-8")) if found == language]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_is_of_a_kind_that_is_tested(document):
    assert {language for language, _ in BLOCK.findall(document.read_text(encoding="utf-8"))} <= {
        "python",
        "bash",
        "json",
    }


@pytest.mark.parametrize("example", blocks(ROOT / "README.md", "python"))
def test_example_in_the_readme_runs_by_itself(example):
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("document", [page for page in DOCUMENTS[1:] if blocks(page, "python")], ids=name_of)
def test_examples_of_a_page_run_one_after_the_other(document):
    names = {}
    for example in blocks(document, "python"):
        exec(compile(example, document.name, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_configs_are_those_of_the_files(document):
    files = [json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("docs/*/*.json")]
    assert all(json.loads(example) in files for example in blocks(document, "json"))


# The README's commands are those that .ci/run runs; those on data of the reader's are checked with the bundles' pages.
@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        line
        for document in DOCUMENTS[1:]
        for code in blocks(document, "bash")
        for line in code.replace("\\\n", " ").splitlines()
        if "/path/to/" not in line
    ],
)
def test_command_of_a_page_runs(command):
    python, *arguments = shlex.split(command)
    assert python == "python"
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    losses = [float(value) for value in re.findall(r"Loss: (\S+)", run.stdout + run.stderr)]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 2


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{name_of(document)}: {link}"


def test_a_segmentation_changes_by_two_entries():
    files = (ROOT / "docs" / "segmentation" / name for name in ("train.json", "with_block.json"))
    plain, changes = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    assert changes.keys() == {"network", "loss"}
    assert changes["network"]["network"] == plain["network"]
    assert changes["loss"]["loss"] == plain["loss"]
    assert not any("ssmctb" in str(value) for value in plain.values())
