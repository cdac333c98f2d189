"""The admin API of a running gateway as the commands use it, and how they print. Neighbours: `keys.py`,
`tree.py`.

Rule: the local data folder's master key goes to a gateway on this machine only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from sidecar.cli.printable import printable

DEFAULT_URL = "http://127.0.0.1:4000"
UrlOption = Annotated[str, typer.Option("--url", envvar="SIDECAR_URL", help="where the gateway runs")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--master-key", envvar="SIDECAR_MASTER_KEY", help="or any key with a role; else the local data folder's"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
_PAGE = 500


def fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


class Api:
    def __init__(self, url: str, master_key: str | None) -> None:
        self.url = _checked_url(url)
        self._master_key = master_key or _local_master_key(self.url)

    def call(self, method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON, numbers exact. Ends the program if there is none, or it is a refusal."""
        import httpx2

        try:
            # A proxy of the environment is for places elsewhere: it must not see a local gateway's master key.
            is_here = _is_here(self.url)
            verify = not is_here or self.url.startswith("https:")  # else the list of authorities is read for nothing
            with httpx2.Client(timeout=30, trust_env=not is_here, verify=verify) as client:
                answer = client.request(
                    method,
                    self.url + path,
                    headers={"authorization": f"Bearer {self._master_key}"},
                    json=body,
                    params=dict(query) if query else None,
                )
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            fail(f"the gateway at {self.url} cannot be reached ({type(error).__name__}); is `sidecar serve` running?")
        try:
            data = json.loads(answer.content, parse_float=Decimal)
        except ValueError:
            fail(f"{self.url} answered {answer.status_code} without JSON; is it a sidecar gateway?")
        if answer.status_code != 200:
            refusal = data.get("error") if isinstance(data, dict) else None
            message = refusal.get("message") if isinstance(refusal, dict) else None
            fail(str(message or f"{self.url} answered {answer.status_code}"))
        return data

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.call("POST", path, body=body)

    def rows(self, path: str, member: str, limit: int | None = None, **query: Any) -> list[dict[str, Any]]:
        """All rows of a paged list, or the first `limit`."""
        rows: list[dict[str, Any]] = []
        page = 1
        while True:
            size = _PAGE if limit is None else min(_PAGE, limit)
            answer = self.get(path, page=page, size=size, **query)
            found = self.member(answer, member)
            rows += [row for row in found if isinstance(row, dict)]
            is_enough = limit is not None and len(rows) >= limit
            if not found or is_enough or page >= int(answer.get("total_pages") or 1):
                return rows[:limit]
            page += 1

    def member(self, answer: Any, name: str) -> Any:
        if not isinstance(answer, dict) or name not in answer:
            fail(f"{self.url} answered something else than expected; is it a sidecar gateway?")
        return answer[name]


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
    except ValueError:
        is_good = False
    if not is_good:
        fail("--url must be the gateway's address, such as http://127.0.0.1:4000", 2)
    return url.rstrip("/")


def _is_here(url: str) -> bool:
    from sidecar.config.check import is_loopback

    return is_loopback(urlsplit(url).hostname or "")


def _local_master_key(url: str) -> str:
    if not _is_here(url):
        fail("a gateway elsewhere needs --master-key or SIDECAR_MASTER_KEY; the local key is not sent there", 2)
    file = Path(".sidecar/master_key")
    if not file.exists():
        found = _configured_master_key()
        if isinstance(found, str):
            return found
        file = found or file
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError):
        fail(f"no master key: set SIDECAR_MASTER_KEY, or run where {file} is", 2)


def _configured_master_key() -> str | Path | None:
    """The one of SIDECAR_CONFIG or the environment: itself, or the file it stands in."""
    from sidecar.config import ConfigError, load_config
    from sidecar.config.build import master_key_file

    try:
        config = load_config(os.environ.get("SIDECAR_CONFIG") or None)
    except ConfigError:
        return None
    if config.auth == "none" or config.auth.master_key is None:
        return master_key_file(config)
    return config.auth.master_key.reveal()


def print_json(value: Any) -> None:
    import msgspec

    encoded = msgspec.json.Encoder(decimal_format="number").encode(value)
    typer.echo(msgspec.json.format(encoded, indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None)
    for row in rows:
        # Text, so that a name such as `[red]` is only a name; and no control characters of anybody's.
        table.add_row(*(Text(printable(cell)) for cell in row))
    # Not a terminal (a pipe): one line a row.
    Console(width=None if sys.stdout.isatty() else 300).print(table)


def print_fields(values: Mapping[str, Any]) -> None:
    """One line a field; what is empty is left out."""
    print_table(("field", "value"), [(name, shown) for name, value in values.items() if (shown := text(value))])


def print_done(what: str, answer: Any) -> None:
    typer.echo(what)
    if isinstance(answer, dict) and answer.get("is_effective_everywhere") is False:
        typer.echo("Not every replica could be told; repeat the command, or wait for their cache to age.", err=True)


def text(value: Any) -> str:
    """A value of an answer as a cell."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, dict | list):
        return json.dumps(value, default=str, ensure_ascii=False) if value else ""
    return "" if value is None else str(value)


def cell(row: Mapping[str, Any], column: str) -> str:
    """A cell of a list: what is worth a column, short."""
    value = row.get(column)
    if column == "models":
        return text(value) or "all"
    if column == "max_budget":
        return (
            f"{text(value)} / {row['budget_duration']}"
            if value is not None and row.get("budget_duration")
            else text(value)
        )
    if column in ("expires", "created_at", "last_active"):
        return text(value)[:16]
    if column == "token":
        return text(value)[:12]
    return text(value)
