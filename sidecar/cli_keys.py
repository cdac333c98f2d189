"""`sidecar keys …`: virtual keys through the admin API of a running gateway. Neighbour: `cli.py`.

Rule: the local data folder's master key goes to a gateway on this machine only.
"""

from __future__ import annotations

import json
import os
import re
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

keys = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Virtual keys, through the admin API of a running gateway."
)

DEFAULT_URL = "http://127.0.0.1:4000"
UrlOption = Annotated[str, typer.Option("--url", envvar="SIDECAR_URL", help="where the gateway runs")]
KeyOption = Annotated[
    str | None,
    typer.Option("--master-key", envvar="SIDECAR_MASTER_KEY", help="else the one in the local data folder"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
WhichKey = Annotated[str, typer.Argument(metavar="KEY", help="the key (sk-…), its alias, or its id from `keys list`")]


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


@keys.command("create")
def create(
    alias: Annotated[str | None, typer.Option(help="a name for people; unique")] = None,
    models: Annotated[str | None, typer.Option(help="allowed models, comma-separated; none: all")] = None,
    max_budget: Annotated[str | None, typer.Option(help="USD, such as 5 or 0.25")] = None,
    budget_duration: Annotated[str | None, typer.Option(help="1h, 1d, 1w, 1mo, or such as 30d; none: lifetime")] = None,
    rpm_limit: Annotated[int | None, typer.Option(min=0, help="requests per minute")] = None,
    tpm_limit: Annotated[int | None, typer.Option(min=0, help="tokens per minute")] = None,
    max_parallel_requests: Annotated[int | None, typer.Option(min=0, help="requests at a time")] = None,
    duration: Annotated[str | None, typer.Option(help="life of the key, such as 30d")] = None,
    user_id: Annotated[str | None, typer.Option(help="whose key it is")] = None,
    team_id: Annotated[str | None, typer.Option(help="which team's")] = None,
    metadata: Annotated[str | None, typer.Option(help="a JSON object")] = None,
    url: UrlOption = DEFAULT_URL,
    master_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mint a key. It is shown once."""
    fields = {
        "key_alias": alias,
        "models": [m.strip() for m in models.split(",") if m.strip()] if models else None,
        "max_budget": _usd(max_budget),
        "budget_duration": budget_duration,
        "rpm_limit": rpm_limit,
        "tpm_limit": tpm_limit,
        "max_parallel_requests": max_parallel_requests,
        "duration": duration,
        "user_id": user_id,
        "team_id": team_id,
        "metadata": _json_object(metadata),
    }
    api = _Api(url, master_key)
    made = api.call("POST", "/key/generate", body={k: v for k, v in fields.items() if v is not None})
    if as_json:
        _print_json(made)
    else:
        typer.echo(_member(made, "key", url))
        typer.echo("This key is not stored and will not be shown again.", err=True)


@keys.command("list")
def list_(url: UrlOption = DEFAULT_URL, master_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """All keys, masked."""
    rows = _Api(url, master_key).rows()
    if as_json:
        _print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "key", "alias", "models", "spend", "budget", "rpm", "tpm", "blocked", "expires", box=None)
    for row in rows:
        budget = _text(row.get("max_budget"))
        if budget and row.get("budget_duration"):
            budget += f" / {row['budget_duration']}"
        cells = [
            str(row.get("token", ""))[:12],
            _text(row.get("key_name")),
            _text(row.get("key_alias")),
            ", ".join(row.get("models") or ["all"]),
            _text(row.get("spend")),
            budget,
            _text(row.get("rpm_limit")),
            _text(row.get("tpm_limit")),
            "yes" if row.get("blocked") else "",
            _text(row.get("expires"))[:16],
        ]
        # Text, so that an alias such as `[red]` is only an alias; and no control characters of anybody's.
        table.add_row(*(Text("".join(c for c in cell if c.isprintable())) for cell in cells))
    # Not a terminal (a pipe): one line a key.
    Console(width=None if sys.stdout.isatty() else 300).print(table)


@keys.command("block")
def block(key: WhichKey, url: UrlOption = DEFAULT_URL, master_key: KeyOption = None) -> None:
    """Refuse a key from now on."""
    api = _Api(url, master_key)
    _done("blocked", api.call("POST", "/key/block", body={"key": api.find(key)}))


@keys.command("unblock")
def unblock(key: WhichKey, url: UrlOption = DEFAULT_URL, master_key: KeyOption = None) -> None:
    """Let a blocked key in again."""
    api = _Api(url, master_key)
    _done("unblocked", api.call("POST", "/key/unblock", body={"key": api.find(key)}))


@keys.command("delete")
def delete(key: WhichKey, url: UrlOption = DEFAULT_URL, master_key: KeyOption = None) -> None:
    """Delete a key for good. Its spend stays in the ledger."""
    api = _Api(url, master_key)
    _done("deleted", api.call("POST", "/key/delete", body={"keys": [api.find(key)]}))


class _Api:
    def __init__(self, url: str, master_key: str | None) -> None:
        self._url = _checked_url(url)
        self._master_key = master_key or _local_master_key(self._url)

    def call(self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """The answer's JSON, numbers exact. Ends the program if there is none, or it is a refusal."""
        import httpx2

        try:
            # A proxy of the environment is for places elsewhere: it must not see a local gateway's master key.
            with httpx2.Client(timeout=30, trust_env=not _is_here(self._url)) as client:
                answer = client.request(
                    method,
                    self._url + path,
                    headers={"authorization": f"Bearer {self._master_key}"},
                    json=body,
                    params=query,
                )
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            _fail(f"the gateway at {self._url} cannot be reached ({type(error).__name__}); is `sidecar serve` running?")
        try:
            data = json.loads(answer.content, parse_float=Decimal)
        except ValueError:
            _fail(f"{self._url} answered {answer.status_code} without JSON; is it a sidecar gateway?")
        if answer.status_code != 200:
            refusal = data.get("error") if isinstance(data, dict) else None
            message = refusal.get("message") if isinstance(refusal, dict) else None
            _fail(str(message or f"{self._url} answered {answer.status_code}"))
        return data

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        page = 1
        while True:
            answer = self.call("GET", "/key/list", query={"page": page, "size": 1000})
            found = _member(answer, "keys", self._url)
            rows += [row for row in found if isinstance(row, dict)]
            if not found or page >= int(answer.get("total_pages") or 1):
                return rows
            page += 1

    def find(self, key: str) -> str:
        """What the API takes, from a key, its hash, an alias or the beginning of a hash."""
        if key.startswith("sk-") or re.fullmatch(r"[0-9a-f]{64}", key):
            return key
        rows = self.rows()
        found = [row for row in rows if row.get("key_alias") == key]
        if not found and len(key) >= 6:
            found = [row for row in rows if str(row.get("token", "")).startswith(key)]
        if not found:
            _fail(f"no key has the alias or id '{key}'; see `sidecar keys list`")
        if len(found) > 1:
            _fail(f"'{key}' is the beginning of {len(found)} ids; write more of it")
        return str(_member(found[0], "token", self._url))


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
    except ValueError:
        is_good = False
    if not is_good:
        _fail("--url must be the gateway's address, such as http://127.0.0.1:4000", 2)
    return url.rstrip("/")


def _is_here(url: str) -> bool:
    from sidecar.config.check import is_loopback

    return is_loopback(urlsplit(url).hostname or "")


def _local_master_key(url: str) -> str:
    if not _is_here(url):
        _fail("a gateway elsewhere needs --master-key or SIDECAR_MASTER_KEY; the local key is not sent there", 2)
    file = Path(".sidecar/master_key")
    if not file.exists():
        found = _configured_master_key()
        if isinstance(found, str):
            return found
        file = found or file
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError):
        _fail(f"no master key: set SIDECAR_MASTER_KEY, or run where {file} is", 2)


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


def _usd(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        _fail("--max-budget must be an amount of USD, such as 5 or 0.25", 2)
    return f"{amount:f}"


def _json_object(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        _fail("""--metadata must be a JSON object, such as '{"project": "x"}'""", 2)
    return value


def _member(answer: Any, name: str, url: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        _fail(f"{url} answered something else than expected; is it a sidecar gateway?")
    return answer[name]


def _done(what: str, answer: Any) -> None:
    typer.echo(what)
    if isinstance(answer, dict) and answer.get("is_effective_everywhere") is False:
        typer.echo("Not every replica could be told; repeat the command, or wait for their cache to age.", err=True)


def _print_json(value: Any) -> None:
    import msgspec

    encoded = msgspec.json.Encoder(decimal_format="number").encode(value)
    typer.echo(msgspec.json.format(encoded, indent=2).decode())


def _text(value: Any) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return "" if value is None else str(value)
