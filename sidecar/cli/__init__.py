"""The command line: `serve`, `demo`, `config` here; `keys.py` and `tree.py` through the admin API (`api.py`,
`options.py`), `spend.py` and `imports.py` on the database. Heavy imports stand inside the commands: `--help` is quick.

Faults of the user go to stderr without a stack trace: exit code 2 for a wrong command line or configuration, 1 when
the gateway refuses or cannot be reached.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sidecar.cli.explain import explain
from sidecar.cli.imports import imports
from sidecar.cli.keys import keys
from sidecar.cli.spend import spend
from sidecar.cli.status import status
from sidecar.cli.tree import add_audit, groups

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.spend.cost import Price

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="An LLM gateway as a stack of ASGI middlewares.",
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at the configuration.")
app.add_typer(keys, name="keys")
for group_name, group in groups().items():
    app.add_typer(group, name=group_name)
add_audit(app)
app.command()(status)
app.command()(explain)
app.add_typer(config_app, name="config")
app.add_typer(imports, name="import")
app.add_typer(spend, name="spend")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="sidecar.yaml (else SIDECAR_CONFIG)")]


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


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="overrides server.host")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="overrides server.port")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="overrides server.workers")] = None,
) -> None:
    """Run the gateway: sidecar beside an app, or shared proxy."""
    from sidecar.config.check import is_loopback, notes
    from sidecar.serve import run

    settings = read_config(config)
    if config is not None:
        os.environ["SIDECAR_CONFIG"] = str(config)
    given = {"host": host, "port": port, "workers": workers}
    server = settings.server.model_copy(update={k: v for k, v in given.items() if v is not None})
    settings = settings.model_copy(update={"server": server})
    if settings.auth == "none" and not is_loopback(server.host):
        fail("'auth: none' serves loopback only; give a master_key to listen elsewhere", 2)
    for note in notes(settings):
        typer.echo(f"note: {note}", err=True)
    if (probes := _price_of_probes(settings)) is not None:
        typer.echo(f"note: {probes}", err=True)
    _check_models(settings)
    _show_new_master_key(settings)
    metrics_folder = _share_metrics() if server.workers > 1 else None
    try:
        code = run(
            host=server.host.strip("[]"),
            port=server.port,
            workers=server.workers,
            drain_s=server.drain_s,
            grace_s=server.grace_s,
            log_level=settings.log.level,
        )
    finally:
        if metrics_folder is not None:
            import shutil

            shutil.rmtree(metrics_folder, ignore_errors=True)
    raise typer.Exit(code)


def _check_models(settings: Config) -> None:
    from sidecar.config.environment import provider_keys

    if not settings.models and not provider_keys(os.environ):
        typer.echo("note: no models; give --config, or set a provider's key such as OPENAI_API_KEY", err=True)


def _show_new_master_key(settings: Config) -> None:
    """Made here, before the workers start, and shown this once."""
    from sidecar.config import ConfigError
    from sidecar.config.build import ensure_master_key

    if settings.auth == "none":
        return
    try:
        key, file = ensure_master_key(settings)
    except ConfigError as error:
        fail(str(error), 2)
    if file is not None:
        typer.echo(f"master key (shown once; it stands in {file}): {key.reveal()}", err=True)


def _share_metrics() -> str | None:
    """Counters of several workers add up through files (prometheus-client's multiprocess mode). The folder if it was
    made here."""
    import tempfile

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="sidecar-metrics-")
        return os.environ["PROMETHEUS_MULTIPROC_DIR"]
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
        file.unlink(missing_ok=True)
    return None


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
    """Report every fault with file, line, column and fix; exit code 2 if there is one. Else list what can be called."""
    from sidecar.config.build import build_catalog
    from sidecar.config.check import notes

    settings = read_config(file)
    catalog = build_catalog(settings, os.environ)
    for deployment in catalog.deployments:
        price = _price_text(deployment.model, deployment.price, settings.budget.unpriced)
        origin = "/".join(deployment.base_url.split("/")[:3])  # a path may hold a token
        typer.echo(f"{deployment.group}  ->  {deployment.provider}/{deployment.model} at {origin}  ({price})")
    if not catalog.deployments:
        typer.echo("note: no models; add some, or set a provider's key such as OPENAI_API_KEY")
    for note in notes(settings):
        typer.echo(f"note: {note}")
    if (probes := _price_of_probes(settings)) is not None:
        typer.echo(f"note: {probes}")
    typer.echo("ok")


def _price_of_probes(settings: Config) -> str | None:
    probes = settings.jobs.probes
    if probes.every_s is None:
        return None
    from sidecar.config.build import build_catalog
    from sidecar.jobs.probes import price_of_probes

    return price_of_probes(build_catalog(settings, os.environ).deployments, probes.every_s, probes.models)


def _price_text(model: str, price: Price, policy: str) -> str:
    if price.status == "priced":
        return f"USD per million tokens: {price.rates.input:f} in, {price.rates.output:f} out"
    if price.status == "free":
        return "free"
    if "*" in model:
        return "priced by model"
    does = "refused" if policy == "refuse" else "flagged"
    return f"no price known: {does} under a budget; give it a price, or price: free"


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of sidecar.yaml, for editors."""
    from sidecar.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def main() -> None:
    app(prog_name="sidecar")


if __name__ == "__main__":
    main()
