"""The commands of ``ssmctb``."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import ssmctb_monai
from ssmctb_monai.cli.bundles import NAMES, Bundle
from ssmctb_monai.cli.workflow import WorkflowCommand, plain_errors, run_workflow, spatial_dims_of

RUNS = Path("runs")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(ssmctb_monai.__version__, prog_name="ssmctb")
def main() -> None:
    r"""Unsupervised anomaly detection in brain MRI: training, evaluation, anomaly maps of new scans, and their review.

    For research; this is no medical device.

    \b
    Completion in the shell, here bash (there are zsh and fish, too):
        eval "$(_SSMCTB_COMPLETE=bash_source ssmctb)"
    """


def _complete_system(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    found = _systems().items()
    return [CompletionItem(name, help=text) for name, text in found if name.startswith(incomplete)]


def _check_system(ctx: click.Context, param: click.Parameter, system: str | None) -> str | None:
    if system is not None and system not in (names := _systems()) and not ctx.resilient_parsing:
        raise click.BadParameter(f"there is no system {system!r}, only {', '.join(names)}.")
    return system


def _check_weights(ctx: click.Context, param: click.Parameter, weights: str | None) -> str | None:
    names = {name for dims in NAMES for name in Bundle(dims).weights()}
    if weights is not None and weights not in names and not Path(weights).is_file() and not ctx.resilient_parsing:
        raise click.BadParameter(f"there is no file {weights}; with the package come {', '.join(sorted(names))}.")
    return weights


_dims = click.option(
    "--dims",
    type=click.Choice([str(dims) for dims in NAMES]),
    is_eager=True,  # before --help, which shows the options of its bundle
    help="Networks in 2D, slice by slice, or in 3D.  [default: those of the weights or the system, else 2]",
)
_system = click.option(
    "--system",
    metavar="NAME",
    callback=_check_system,
    shell_complete=_complete_system,
    help="Another system than DRAEM, see `ssmctb systems`.",
)
_overlays = click.option(
    "--overlay",
    "overlays",
    metavar="NAME|FILE",
    multiple=True,
    help="Configuration on top, of the bundle (such as images2d, lgg) or your own.",
)
_weights = click.option(
    "--weights",
    metavar="NAME|FILE",
    callback=_check_weights,
    help="Checkpoint: `brats`, which comes with the package, or a file, such as that of your training.",
)


@main.command(cls=WorkflowCommand, sections=("Training", "Other systems"))
@_dims
@_system
@_overlays
@click.pass_context
def train(ctx: click.Context, dims: str | None, system: str | None, overlays: Sequence[str]) -> None:
    """Trains a network on healthy tissue alone: on your data (--dataset_dir), else on demo data.

    Writes below runs/BUNDLE, such as runs/brats2d, or --bundle_root.
    """
    bundle = _bundle_of(dims, system)
    _run(ctx, "train", "training", bundle, _files(bundle, system, overlays))
    own = str(Path(ctx.obj["ckpt_dir"]) / "model.pt") if "ckpt_dir" in ctx.obj else None
    same = {name: ctx.obj.get(name) for name in ("dataset_dir", "datalist_file", "bundle_root")}
    _next("evaluate", dims=dims, system=system, overlay=overlays, weights=own, **same)


@main.command(cls=WorkflowCommand, sections=("Evaluation",))
@_dims
@_system
@_overlays
@_weights
@click.pass_context
def evaluate(
    ctx: click.Context, dims: str | None, system: str | None, overlays: Sequence[str], weights: str | None
) -> None:
    """Evaluates a network on the test part of a data set, and writes a report.

    By default that of your training below runs/BUNDLE, such as runs/brats2d, or --bundle_root.
    """
    bundle = _bundle_of(dims, system, weights)
    options = {"ckpt_file": _checkpoint(bundle, weights)} if weights else {}
    _run(ctx, "evaluate", "evaluating", bundle, _files(bundle, system, overlays), **options)
    if not weights and not system and not overlays:
        weights = str(Path(ctx.obj.get("bundle_root", RUNS / bundle.name)) / "trained/model.pt")
    _next("infer", "SCAN", dims=dims, system=system, overlay=overlays, weights=weights)


@main.command(cls=WorkflowCommand, sections=("Inference",))
@click.argument("scan", required=False, type=click.Path(exists=True, path_type=Path))
@_dims
@_system
@_overlays
@_weights
@click.pass_context
def infer(
    ctx: click.Context,
    scan: Path | None,
    dims: str | None,
    system: str | None,
    overlays: Sequence[str],
    weights: str | None,
) -> None:
    """Makes the anomaly map of every scan in SCAN: a file, a DICOM series, or a folder of them; else of demo data.

    Writes maps and summary.csv to runs/maps, or --output_dir.
    """
    if scan is not None and "dataset_dir" in ctx.obj:
        raise click.UsageError("Give the scans once: as SCAN, or by --dataset_dir.")
    bundle = _bundle_of(dims, system, weights)
    files = _files(bundle, system, overlays)
    options = {"output_dir": str(RUNS / "maps")}
    if scan is not None:
        options["dataset_dir"] = str(scan.absolute())  # also where a name begins as an expression does
    if weights or not any("ckpt_dir" in file.read_text("utf-8") for file in files):
        options["ckpt_file"] = _checkpoint(bundle, weights or "brats")
    _run(ctx, "inference", "inference", bundle, files, **options)
    _next("review", ctx.obj.get("output_dir", options["output_dir"]))


@main.command()
@click.argument("maps", type=FOLDER)
@click.option("--dataset_dir", type=FOLDER, help="Folder of the scans; maps of `ssmctb infer` know theirs.")
@click.option("--open/--no-open", "opened", default=True, help="Whether to start JupyterLab.  [default: open]")
def review(maps: Path, dataset_dir: Path | None, opened: bool) -> None:
    """Opens the maps in the folder MAPS over their scans, in JupyterLab, to accept, reject or doubt what they show.

    Writes the notebook review.ipynb into MAPS, unless you have changed it, and what you decide to review.csv.
    """
    with plain_errors():
        try:
            import nbformat
        except ModuleNotFoundError as error:
            raise ImportError(f'{error}. The review needs an extra: pip install "ssmctb_monai[notebooks]"') from error
        from ssmctb_monai.visualize import find_maps

        folders = [".", *([] if dataset_dir is None else [str(dataset_dir.absolute())])]
        count = len(find_maps(maps, dataset_dir))
        cells = [
            "from ssmctb_monai.visualize import find_maps, review",
            f"widget = review(find_maps({', '.join(map(repr, folders))}))\nwidget",
        ]
        notebook = maps / "review.ipynb"
        found = nbformat.read(notebook, 4) if notebook.exists() else nbformat.v4.new_notebook()
        if [cell.source for cell in found.cells if cell.source] in ([], cells, found.metadata.get("generated")):
            code = [nbformat.v4.new_code_cell(cell) for cell in cells]
            nbformat.write(nbformat.v4.new_notebook(cells=code, metadata={"generated": cells}), notebook)
        else:
            click.echo(f"{notebook} was changed and stays as it is: move it away for a new one.")
    click.echo(f"{count} maps: {notebook}")
    if opened:
        sys.exit(subprocess.run([sys.executable, "-m", "jupyter", "lab", str(notebook)], check=False).returncode)


@main.command()
@click.argument("maps", nargs=-1, required=True, metavar="[NAME=]MAPS…")
@click.option("--dataset_dir", type=FOLDER, required=True, help="Data set with labels, or folder of labels.")
@click.option("--output_dir", type=click.Path(path_type=Path), default=RUNS / "report", show_default=True)
@click.option("--baseline", default="flair", show_default=True, help="Modality that is evaluated beside the maps.")
def report(maps: Sequence[str], dataset_dir: Path, output_dir: Path, baseline: str) -> None:
    """Evaluates folders of anomaly maps, of any tools, against labels, and writes a report.

    Several are compared with the first, by their names, which are those of the folders where none are given.
    """
    if len(folders := dict(map(_named, maps))) < len(maps):
        raise click.UsageError("Two folders have one name: give them names, as ours=FOLDER theirs=FOLDER.")
    with plain_errors():
        from ssmctb_monai.reports import evaluate_folders

        evaluation = evaluate_folders(folders, dataset_dir, baseline=baseline, output_dir=output_dir)
    click.echo(f"saved {output_dir / 'report.html'}")
    if evaluation.failed:
        listed = "\n".join(f"{name}: {problem}" for name, problem in evaluation.failed.items())
        raise click.ClickException(f"not evaluated:\n{listed}")


def _named(maps: str) -> tuple[str, str]:
    """Splits NAME=MAPS; a folder that is there is taken whole."""
    name, _, folder = maps.partition("=")
    return (name, folder) if folder and not Path(maps).is_dir() else (Path(maps).resolve().name, maps)


@main.command()
@click.argument("name", type=click.Choice(list(NAMES.values())))
@click.argument("folder", type=click.Path(path_type=Path))
def bundle(name: str, folder: Path) -> None:
    """Copies the bundle NAME, with its weights, to the new FOLDER, to be changed."""
    if folder.exists():
        raise click.UsageError(f"{folder} exists: name a folder that does not.")
    source = next(Bundle(dims).root for dims, other in NAMES.items() if other == name)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("trained", "eval", "cache", "__pycache__"))
    click.echo(f"saved {folder}")
    command = ["python", "-m", "monai.bundle", "run", "training", "--config_file", str(folder / "configs/train.json")]
    click.echo(f"next: {shlex.join([*command, '--bundle_root', str(folder)])}")


@main.command()
def systems() -> None:
    """Lists the systems that --system names."""
    formatter = click.HelpFormatter(max_width=120)
    formatter.write_dl([*_systems().items()])
    click.echo(formatter.getvalue().rstrip())


def _systems() -> dict[str, str]:
    """Returns the first sentence on each system, those of 3D alone last."""
    flat, deep = (Bundle(dims).systems() for dims in NAMES)
    return flat | deep | flat  # of both those in 2D are described


def _bundle_of(dims: str | None, system: str | None = None, weights: str | None = None) -> Bundle:
    """Returns the bundle, which is that of the weights or of the system where none is asked for."""
    own = spatial_dims_of(Path(weights)) if weights else None
    having = [each for each in NAMES if system is None or system in Bundle(each).systems()]
    bundle = Bundle(int(dims) if dims else own or having[0])
    if bundle.spatial_dims not in having:
        raise click.UsageError(f"The system {system} is one of {', '.join(NAMES[each] for each in having)} alone.")
    return bundle


def _checkpoint(bundle: Bundle, weights: str) -> str:
    return str(bundle.weights().get(weights, weights))


def _files(bundle: Bundle, system: str | None, overlays: Sequence[str]) -> list[Path]:
    """Returns the files of the overlays."""
    names = [*([system] if system else []), *overlays]
    own = [bundle.config(name) for name in names]
    files = [file if file.is_file() else Path(name) for name, file in zip(names, own, strict=True)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise click.UsageError(f"There is no overlay {', '.join(missing)}: name one of {bundle.name}, or a file.")
    return files


def _next(*words: str, **options: str | Sequence[str] | None) -> None:
    """Says by which command it goes on."""
    given = [(name, [value] if isinstance(value, str) else value or []) for name, value in options.items()]
    added = [word for name, values in given for value in values for word in (f"--{name}", value)]
    click.echo(f"next: {shlex.join(['ssmctb', *words, *added])}")


def _run(ctx: click.Context, config: str, run_id: str, bundle: Bundle, files: Sequence[Path], **options: str) -> None:
    """Runs a workflow with the options that were given, and writes below ``runs`` in place of the bundle's folder."""
    run_workflow(config, run_id, bundle, files, {"bundle_root": str(RUNS / bundle.name), **options, **ctx.obj})
