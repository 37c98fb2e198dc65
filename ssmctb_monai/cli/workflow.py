"""Commands that run a workflow of a bundle, and take all its options."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ssmctb_monai.cli.bundles import NAMES, Bundle

INTERRUPTED = 130  # exit status of what Ctrl-C stopped, as shells have it


class WorkflowCommand(click.Command):
    """Command of which every option that it does not know itself is one of the bundle's configuration.

    Help and completion show those that the bundle's docs have; the workflow refuses what its configuration has not.

    Args:
        sections: sections of the docs with the tables of options.
        arguments: those of `click.Command`.
    """

    def __init__(self, *, sections: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sections = sections

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes the options of the bundle out of the arguments; what looks like one of its own is left to click."""
        own = [name for parameter in self.get_params(ctx) for name in parameter.opts]
        overrides, rest, words = {}, [], list(args)
        while words:
            word = words.pop(0)
            name, is_whole, value = word.partition("=")
            if not name.startswith("--") or get_close_matches(name, own, cutoff=0.8):
                rest.append(word)
                continue
            if not is_whole:
                value = "true" if not words or words[0].startswith("--") else words.pop(0)
            overrides[name[2:].replace("-", "_")] = value
        ctx.obj = {name: parse_value(name, value) for name, value in overrides.items()}
        return super().parse_args(ctx, rest)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options of the command, then those of the bundle."""
        super().format_options(ctx, formatter)
        with formatter.section("Options of the bundle"):
            formatter.write_dl([*_bundle_of(ctx).options(*self.sections).items()], col_max=24)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes options of the command and of the bundle, and files."""
        items = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return items or [CompletionItem(incomplete, type="file")]
        options = _bundle_of(ctx).options(*self.sections)
        names = {name: help for text, help in options.items() for name in re.findall(r"--[\w#]+", text)}
        return items + [CompletionItem(name, help=names[name]) for name in names if name.startswith(incomplete)]


def run_workflow(config: str, run_id: str, bundle: Bundle, overlays: Sequence[Path], options: dict[str, Any]) -> None:
    """Runs a workflow as ``python -m monai.bundle run`` does.

    Args:
        config: name of its configuration, such as ``"train"``.
        run_id: what is run of it, such as ``"training"``.
        bundle: the bundle.
        overlays: files on top.
        options: values of options.

    Raises:
        ClickException: with the reason, when something cannot be used.
    """
    with plain_errors():
        import monai.bundle

        for module in ("scripts", "workflows"):  # which list the options, in a format of their own
            logging.getLogger(f"monai.bundle.{module}").setLevel(logging.WARNING)
        files = [str(file) for file in (bundle.config(config), *overlays)]
        monai.bundle.run(run_id, config_file=files, **options)


_PLAIN = (ValueError, OSError, ImportError)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the command with the reason alone where something from outside cannot be used, and 130 after Ctrl-C."""
    warnings.filterwarnings("ignore", module="monai")  # its notes on optional packages, and on files of others
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        reason: BaseException = error
        # Those of MONAI around it say which expression or transform failed
        while reason.__cause__ is not None and (
            not isinstance(reason, _PLAIN) or str(reason).startswith("applying transform ")
        ):
            reason = reason.__cause__
        if isinstance(reason, _PLAIN):
            raise click.ClickException(str(reason)) from error
        raise


def spatial_dims_of(weights: Path) -> int | None:
    """Returns for how many dimensions a checkpoint is, as the settings beside it say; ``None`` without."""
    settings = weights.with_name(f"{weights.stem}_settings.json")
    try:
        dims = json.loads(settings.read_text("utf-8"))["spatial_dims"]
    except (OSError, ValueError, KeyError, TypeError):  # the workflow says what is wrong with them
        return None
    return dims if dims in NAMES else None


def parse_value(name: str, text: str) -> Any:
    """Reads a value as the command line of ``monai.bundle`` does, but leaves names of files, and knows ``null``."""
    if name.endswith(("_dir", "_file")) and not text.startswith("["):
        return text
    if text in ("null", "None"):
        return "$None"  # MONAI leaves out what is None
    from fire.parser import DefaultParseValue

    return DefaultParseValue(text)


def _bundle_of(ctx: click.Context) -> Bundle:
    return Bundle(int(ctx.params.get("dims") or 2))
