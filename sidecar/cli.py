"""The command line: serve, demo, keys, config. Heavy imports stand inside the commands, so `--help` is quick."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.gateway import Gateway

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An LLM gateway as a stack of ASGI middlewares.",
)
keys = typer.Typer(no_args_is_help=True, help="Virtual keys, through the admin API of a running gateway.")
config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
app.add_typer(keys, name="keys")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="sidecar.yaml (else SIDECAR_CONFIG)")]
UrlOption = Annotated[str, typer.Option("--url", envvar="SIDECAR_URL", help="where the gateway runs")]
KeyOption = Annotated[str | None, typer.Option("--master-key", envvar="SIDECAR_MASTER_KEY", help="the admin's key")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
DEFAULT_URL = "http://127.0.0.1:4000"


def fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def read_config(path: Path | None) -> Config:
    from sidecar.config import ConfigError, load_config

    if path is None and os.environ.get("SIDECAR_CONFIG"):
        path = Path(os.environ["SIDECAR_CONFIG"])
    try:
        return load_config(path)
    except ConfigError as error:
        fail(str(error), 2)


def make_app() -> Gateway:
    """The app of one `serve` worker; its configuration is named by SIDECAR_CONFIG."""
    from sidecar.app import build_app

    return build_app(read_config(None), migrate=True, owns_process=True)


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="overrides server.host")] = None,
    port: Annotated[int | None, typer.Option(help="overrides server.port")] = None,
    workers: Annotated[int | None, typer.Option(help="overrides server.workers")] = None,
) -> None:
    """Run the gateway: sidecar beside an app, or shared proxy."""
    import uvicorn

    from sidecar.config.check import is_loopback

    settings = read_config(config)
    if config is not None:
        os.environ["SIDECAR_CONFIG"] = str(config)
    at = host or settings.server.host
    if settings.auth == "none" and not is_loopback(at):
        fail("'auth: none' serves loopback only; give a master_key to listen elsewhere", 2)
    count = workers or settings.server.workers
    if count > 1:
        _share_metrics()
        if settings.store.redis_url is None:
            typer.echo(f"{count} workers without store.redis_url: limits and budgets hold per process only", err=True)
    uvicorn.run(
        "sidecar.cli:make_app",
        factory=True,
        host=at,
        port=port if port is not None else settings.server.port,
        workers=count,
        log_level=settings.log.level,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.server.grace_s) or 1,
    )


def _share_metrics() -> None:
    """Counters of several workers add up through files (prometheus-client's multiprocess mode)."""
    import tempfile

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="sidecar-metrics-")
    else:
        for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
            file.unlink(missing_ok=True)


@app.command()
def demo() -> None:
    """The main job end to end on embedded defaults, against a simulated provider."""
    from sidecar.demo import main as run

    raise typer.Exit(run())


@app.command()
def version() -> None:
    """Print the version."""
    from sidecar import __version__

    typer.echo(__version__)


@config_app.command("check")
def config_check(file: Annotated[Path | None, typer.Argument(help="else SIDECAR_CONFIG")] = None) -> None:
    """Report every fault with file, line, column and fix; exit code 2 if there is one."""
    settings = read_config(file)
    names = ", ".join(m.name for m in settings.models) or "none (provider/model names from the environment)"
    typer.echo(f"ok: models {names}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of sidecar.yaml, for editors."""
    from sidecar.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@keys.command("create")
def keys_create(
    alias: Annotated[str | None, typer.Option(help="a name for people")] = None,
    models: Annotated[str | None, typer.Option(help="allowed models, comma-separated; none: all")] = None,
    max_budget: Annotated[float | None, typer.Option(help="USD")] = None,
    budget_duration: Annotated[str | None, typer.Option(help="1h, 1d, 1w, 1mo, or such as 30d")] = None,
    rpm_limit: Annotated[int | None, typer.Option(help="requests per minute")] = None,
    tpm_limit: Annotated[int | None, typer.Option(help="tokens per minute")] = None,
    max_parallel_requests: Annotated[int | None, typer.Option(help="requests at a time")] = None,
    duration: Annotated[str | None, typer.Option(help="life of the key, such as 30d")] = None,
    url: UrlOption = DEFAULT_URL,
    master_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mint a key. It is shown once."""
    body = {
        "key_alias": alias,
        "models": [m.strip() for m in models.split(",")] if models else None,
        "max_budget": max_budget,
        "budget_duration": budget_duration,
        "rpm_limit": rpm_limit,
        "tpm_limit": tpm_limit,
        "max_parallel_requests": max_parallel_requests,
        "duration": duration,
    }
    made = _call("POST", "/key/generate", url, master_key, json={k: v for k, v in body.items() if v is not None})
    if as_json:
        typer.echo(json.dumps(made, indent=2))
    else:
        typer.echo(made["key"])
        typer.echo("This key is not stored and will not be shown again.", err=True)


@keys.command("list")
def keys_list(url: UrlOption = DEFAULT_URL, master_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """All keys, masked."""
    rows: list[dict[str, Any]] = []
    page = 1
    while True:
        answer = _call("GET", "/key/list", url, master_key, params={"page": page, "size": 100})
        rows += answer["keys"]
        if len(rows) >= answer.get("total_count", 0) or not answer["keys"]:
            break
        page += 1
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "alias", "models", "spend", "budget", "rpm", "tpm", "blocked", "expires")
    for row in rows:
        table.add_row(
            row["key_name"],
            row.get("key_alias") or "",
            ", ".join(row.get("models") or ["all"]),
            *(_text(row.get(n)) for n in ("spend", "max_budget", "rpm_limit", "tpm_limit")),
            "yes" if row.get("blocked") else "",
            row.get("expires") or "",
        )
    Console().print(table)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


@keys.command("block")
def keys_block(key: str, url: UrlOption = DEFAULT_URL, master_key: KeyOption = None) -> None:
    """Refuse a key (sk-… or its hash) from now on."""
    _call("POST", "/key/block", url, master_key, json={"key": key})
    typer.echo("blocked")


@keys.command("unblock")
def keys_unblock(key: str, url: UrlOption = DEFAULT_URL, master_key: KeyOption = None) -> None:
    """Let a blocked key in again."""
    _call("POST", "/key/unblock", url, master_key, json={"key": key})
    typer.echo("unblocked")


@keys.command("delete")
def keys_delete(key: str, url: UrlOption = DEFAULT_URL, master_key: KeyOption = None) -> None:
    """Delete a key for good."""
    _call("POST", "/key/delete", url, master_key, json={"keys": [key]})
    typer.echo("deleted")


def _call(method: str, path: str, url: str, master_key: str | None, **options: Any) -> Any:
    import httpx2

    if not master_key:
        file = Path(".sidecar/master_key")
        if not file.exists():
            fail("no master key: set SIDECAR_MASTER_KEY, or run where .sidecar/master_key is", 2)
        master_key = file.read_text().strip()
    headers = {"authorization": f"Bearer {master_key}"}
    try:
        answer = httpx2.request(method, url.rstrip("/") + path, headers=headers, timeout=30, **options)
    except httpx2.HTTPError as error:
        fail(f"the gateway at {url} cannot be reached ({type(error).__name__}); is `sidecar serve` running?")
    try:
        body = answer.json()
    except ValueError:
        fail(f"{url} answered {answer.status_code} without JSON; is it a sidecar gateway?")
    if answer.status_code >= 400:
        fail(body.get("error", {}).get("message", f"status {answer.status_code}"))
    return body


def main() -> None:
    app(prog_name="sidecar")


if __name__ == "__main__":
    main()
