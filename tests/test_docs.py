"""The examples in README and docs run as they stand."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
ADD_A_SYSTEM = ROOT / "docs" / "add_a_system.md"
PAGES = [page for page in DOCUMENTS[1:] if page != ADD_A_SYSTEM]  # whose examples work in the repository as it is
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
# A paragraph that begins with the name of a file, and the file's content, or what comes into it behind a line
FILE = re.compile(
    r"^`([\w./]+)` (?:gets behind `([^`]+)`)?(?:[^\n]|\n(?!\n))*\n\n```\w+\n(.*?)^```", flags=re.DOTALL | re.MULTILINE
)


def blocks(document: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(document.read_text(encoding="utf-8")) if found == language]


def commands(document: Path) -> list[str]:
    """Commands of a page, but those on data of the reader's."""
    lines = [line for code in blocks(document, "bash") for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if "/path/to/" not in line]


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


@pytest.mark.parametrize("document", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_examples_of_a_page_run_one_after_the_other(document):
    names = {}
    for example in blocks(document, "python"):
        exec(compile(example, document.name, "exec"), names)


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_configs_are_those_of_the_files(document):
    files = [json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("docs/*/*.json")]
    assert all(json.loads(example) in files for example in blocks(document, "json"))


# The README's commands are those that .ci/run runs; those on data of the reader's are checked with the bundles' pages.
@pytest.mark.process
@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
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
        for link in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            address = urlsplit(link)
            exists = "." in address.netloc if address.scheme == "https" else (document.parent / link).exists()
            assert exists, f"{name_of(document)}: {link}"


def test_every_package_has_its_page():
    found = (path for path in ROOT.glob("ssmctb_monai/**/__init__.py") if "__all__ = " in path.read_text("utf-8"))
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in found}
    packages -= {"ssmctb_monai", "ssmctb_monai.cli", "ssmctb_monai.transforms.anomalies"}  # described elsewhere
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^   (ssmctb_monai\S*)$", page, flags=re.MULTILINE)) == packages


def test_a_segmentation_changes_by_two_entries():
    files = (ROOT / "docs" / "segmentation" / name for name in ("train.json", "with_block.json"))
    plain, changes = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    assert changes.keys() == {"network", "loss"}
    assert changes["network"]["network"] == plain["network"]
    assert changes["loss"]["loss"] == plain["loss"]
    assert not any("ssmctb" in str(value) for value in plain.values())


def test_lines_of_a_system_are_counted():
    page = ADD_A_SYSTEM.read_text(encoding="utf-8")
    counted = [int(number) for number in re.findall(r"^\|.*\| (\d+) \|$", page, flags=re.MULTILINE)]
    assert counted == [content.count("\n") for _, _, content in FILE.findall(page)]


@pytest.mark.process
def test_a_system_is_added_as_the_page_says(tmp_path):
    for folder in ("ssmctb_monai", "bundles", "benchmarks", "tests/networks/nets"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pt", "trained", "eval", "cache")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, behind, content in FILE.findall(ADD_A_SYSTEM.read_text(encoding="utf-8")):
        file = tmp_path / name
        if behind:
            before, line, after = file.read_text(encoding="utf-8").partition(f"{behind}\n")
            content = before + line + content + after
        file.write_text(content, encoding="utf-8")
    row = "from benchmarks.accuracy import rows; row = rows.ROWS['brats2d-conv_mae']; "
    row += "print(rows.settings_of(*row.config_files)['system']['name'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command in [*commands(ADD_A_SYSTEM), shlex.join(["python", "-c", row])]:
        python, *arguments = shlex.split(command)
        assert python == "python"
        words = [sys.executable, *arguments]
        run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, command + run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "conv_mae"
    report = json.loads((tmp_path / "runs" / "conv_mae" / "report.json").read_text(encoding="utf-8"))
    assert report["methods"]["model"]
