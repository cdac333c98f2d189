"""`sidecar import litellm`: another gateway's configuration as a `sidecar.yaml`, its keys and budgets in our database,
and what became of each line and column.

Rule: the file is written whole or not at all, and never over another one without `--force`.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.importing import Imported
    from sidecar.importing.database import Book

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
    database_url: Annotated[
        str | None, typer.Option("--database-url", help="the proxy's PostgreSQL, to take over keys, teams, budgets")
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", help="our database; else the one the written file names")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="also change rows that are there already")] = False,
    out: Annotated[str, typer.Option("--out", "-o", help="the file to write; '-': standard output")] = "sidecar.yaml",
    force: Annotated[bool, typer.Option("--force", help="write over the file")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only the report; nothing is written")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the report as JSON")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="exit code 1 if something has no equivalent")] = False,
) -> None:
    """Write a sidecar.yaml from LiteLLM's config.yaml, take over its database, and report what became of each line and
    column. No secret is copied; keys go on working by their hashes."""
    from sidecar.config import ConfigError
    from sidecar.importing import import_litellm

    is_stdout = out == "-" and not dry_run
    is_kept = False
    if not is_stdout and not dry_run:
        is_kept = database_url is not None and not force and os.path.lexists(out)
        if not is_kept and not force and os.path.lexists(out):
            _fail(f"{out}: exists; give another --out, or --force to write over it")
        if config.exists() and os.path.exists(out) and os.path.samefile(config, out):
            _fail(f"{out}: is the source itself; give another --out")
    try:
        imported = import_litellm(config)
    except ConfigError as error:
        _fail(str(error))
    report = imported.report
    if is_kept:
        report.notes.append(f"{out} was there and was kept; --force writes it anew")
    is_aside = dry_run or is_stdout or is_kept
    settings = _check_aside(imported, out) if is_aside else _write(imported, Path(out))
    if is_stdout:
        typer.echo(imported.text, nl=False)
    if database_url is not None:
        target = None
        if not dry_run:
            target, settings = _database_of(None if is_stdout else Path(out), into, settings)
        book = _take_database(database_url, target, imported, settings, is_update=update)
        report.database = book
        report.notes += book.notes
    shown = json.dumps(report.as_json(), indent=2) if as_json else report.text()
    typer.echo(shown, err=is_stdout)
    if strict and report.count("no equivalent"):
        raise typer.Exit(1)


def _check_aside(imported: Imported, name: str) -> Config | None:
    with tempfile.TemporaryDirectory() as folder:
        return _check(imported, Path(folder) / "sidecar.yaml", "the output" if name == "-" else name)


def _write(imported: Imported, target: Path) -> Config | None:
    """Through a file beside it, which also is what is checked: what does not load is told in the report's notes."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        settings = _check(imported, aside, str(target))
        os.replace(aside, target)
    except OSError as error:
        _fail(f"{target}: cannot be written ({error.strerror})")
    finally:
        aside.unlink(missing_ok=True)
    return settings


def _check(imported: Imported, file: Path, name: str) -> Config | None:
    from sidecar.config import ConfigError, load_config
    from sidecar.config.check import notes

    with file.open("x", encoding="utf-8") as writer:
        writer.write(imported.text)
    try:
        settings = load_config(file, imported.placeholders)
    except ConfigError as error:
        imported.report.notes += [f"does not load yet: {fault.replace(str(file), name)}" for fault in error.faults]
        return None
    imported.report.notes += notes(settings)
    return settings


def _database_of(file: Path | None, into: str | None, settings: Config | None) -> tuple[str, Config | None]:
    """Our database, and the configuration that counts: that of the file, which may have been there before."""
    from sidecar.config import ConfigError, load_config

    if file is None:
        return into or _fail("--into: say which database of ours, for no file is written that names it"), settings
    try:
        found = load_config(file)
    except ConfigError as error:
        if into is not None:
            return into, settings
        _fail(f"{error}\nset these variables, or say with --into which database is ours; no database was written to")
    return into or found.store.database_url.reveal(), found


def _take_database(
    source: str, target: str | None, imported: Imported, settings: Config | None, *, is_update: bool
) -> Book:
    from zoneinfo import ZoneInfo

    from sidecar.config.build import global_budgets
    from sidecar.errors import SidecarError
    from sidecar.importing.database import import_database

    budgets = global_budgets(settings) if settings is not None else ()
    work = import_database(
        source,
        target,
        clock=time.time,
        zone=ZoneInfo(settings.budget.timezone if settings is not None else "UTC"),
        whole=next(iter(budgets), None),
        masters=_masters(imported.master_key),
        is_update=is_update,
    )
    try:
        return asyncio.run(work)
    except ValueError as error:
        _fail(str(error))
    except SidecarError as error:
        _fail(error.message, code=1)


def _masters(given: str | None) -> frozenset[str]:
    """Hashes of the master keys we can know, in the source or in the environment."""
    from sidecar.identity.tokens import hash_key

    names = ["LITELLM_MASTER_KEY", "SIDECAR_MASTER_KEY"]
    values = []
    if given is not None and given.startswith("os.environ/"):
        names.append(given.removeprefix("os.environ/"))
    elif given is not None:
        values.append(given)
    values += [os.environ[name] for name in names if os.environ.get(name)]
    return frozenset(hash_key(value) for value in values)
