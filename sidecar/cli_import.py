"""`sidecar import litellm`: another gateway's configuration as a `sidecar.yaml`, and what became of each line.

Neighbour: `cli.py`. Rule: the file is written whole or not at all, and never over another one without `--force`.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from sidecar.importing import Imported

imports = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Take over another gateway's configuration.")


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


@imports.callback()
def _group() -> None:
    """Take over another gateway's configuration."""


@imports.command("litellm")
def litellm(
    config: Annotated[Path, typer.Option("--config", "-c", help="the proxy's config.yaml")],
    out: Annotated[str, typer.Option("--out", "-o", help="the file to write; '-': standard output")] = "sidecar.yaml",
    force: Annotated[bool, typer.Option("--force", help="write over the file")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only the report; nothing is written")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the report as JSON")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="exit code 1 if something has no equivalent")] = False,
) -> None:
    """Write a sidecar.yaml from LiteLLM's config.yaml, and report what became of each line. No secret is copied."""
    from sidecar.config import ConfigError
    from sidecar.importing import import_litellm

    is_stdout = out == "-" and not dry_run
    if not is_stdout and not dry_run:
        if not force and os.path.lexists(out):
            _fail(f"{out}: exists; give another --out, or --force to write over it")
        if config.exists() and os.path.exists(out) and os.path.samefile(config, out):
            _fail(f"{out}: is the source itself; give another --out")
    try:
        imported = import_litellm(config)
    except ConfigError as error:
        _fail(str(error))
    if dry_run or is_stdout:
        _check_aside(imported, out)
    else:
        _write(imported, Path(out))
    if is_stdout:
        typer.echo(imported.text, nl=False)
    report = imported.report
    shown = json.dumps(report.as_json(), indent=2) if as_json else report.text()
    typer.echo(shown, err=is_stdout)
    if strict and report.count("no equivalent"):
        raise typer.Exit(1)


def _check_aside(imported: Imported, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _check(imported, Path(folder) / "sidecar.yaml", "the output" if name == "-" else name)


def _write(imported: Imported, target: Path) -> None:
    """Through a file beside it, which also is what is checked: what does not load is told in the report's notes."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _check(imported, aside, str(target))
        os.replace(aside, target)
    except OSError as error:
        _fail(f"{target}: cannot be written ({error.strerror})")
    finally:
        aside.unlink(missing_ok=True)


def _check(imported: Imported, file: Path, name: str) -> None:
    from sidecar.config import ConfigError, load_config
    from sidecar.config.check import notes

    with file.open("x", encoding="utf-8") as writer:
        writer.write(imported.text)
    try:
        settings = load_config(file, imported.placeholders)
    except ConfigError as error:
        imported.report.notes += [f"does not load yet: {fault.replace(str(file), name)}" for fault in error.faults]
    else:
        imported.report.notes += notes(settings)
