"""`sidecar explain request.json --model X`: what a chat request would be at its provider, without sending it.

Neighbour: `explanation`, which works it out from the configuration alone: no gateway has to run.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.cli.api import DEFAULT_URL, JsonOption, KeyOption, UrlOption, fail
from sidecar.cli.explain_exchange import show_exchange

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="sidecar.yaml (else SIDECAR_CONFIG)")]


@dataclass(frozen=True, slots=True)
class Caps:
    """What the configuration's own budget bounds; no key asks here."""

    has_global_budget: bool
    no_max_tokens: str
    default_output_tokens: int
    parts: frozenset[str] = frozenset({"budgets"})


def show(file: Path, model: str | None, config: Path | None, *, as_json: bool) -> None:
    from sidecar.errors import SidecarError

    raw = _read(file)
    try:
        payload = json.loads(raw)
    except ValueError as error:
        fail(f"{file}: not JSON ({error})", 2)
    if not isinstance(payload, dict):
        fail(f"{file}: not a JSON object", 2)
    if model is not None:
        payload["model"] = model
        raw = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    if not isinstance(payload.get("model"), str):
        fail("no model: give --model, or put it into the request", 2)
    try:
        shown = _explained(payload, raw, config)
    except SidecarError as error:
        if as_json:
            typer.echo(json.dumps(error.body(), indent=2))
            raise typer.Exit(1) from None
        fail(error.message)
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False) if as_json else text(shown))


def _explained(payload: dict[str, Any], raw: bytes, config: Path | None) -> dict[str, Any]:
    from sidecar.cli import read_config
    from sidecar.config.build import build_catalog, build_router
    from sidecar.explanation import Explainer
    from sidecar.types import Identity

    settings = read_config(config)
    caps = Caps(
        settings.budget.max_usd is not None, settings.budget.no_max_tokens, settings.budget.default_output_tokens
    )
    explainer = Explainer(
        build_catalog(settings, os.environ),
        build_router(settings),
        policy=caps,
        retries=settings.routing.retries,
        fetches_media=settings.upstream.fetch_media,
    )
    return explainer.explain(payload, raw, Identity(key_hash="", role="proxy_admin"))


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        fail(f"{file}: {error.strerror}", 2)


def text(shown: dict[str, Any]) -> str:
    """For people: the request as it would go out, then the losses, then who else could serve it."""
    request = shown["request"]
    lines = [f"{request['method']} {request['url']}"]
    lines += [f"{name}: {value}" for name, value in request["headers"].items()]
    lines += ["", json.dumps(request["body"], indent=2, ensure_ascii=False), ""]
    if shown["losses"]:
        lines.append("losses:")
        lines += [f"  {loss['kind']:9} {loss['where']}: {loss['what']}" for loss in shown["losses"]]
    else:
        lines.append("losses: none")
    lines.append("candidates:")
    for row in shown["candidates"]:
        mark = "*" if row["is_chosen"] else " "
        on = f", after a {row['on']} error" if "on" in row else ""
        said = f"  refuses: {row['refusal']['message']}" if "refusal" in row else ""
        lines.append(
            f"{mark} {row['deployment']}  {row['provider']}/{row['model']}  level {row['level']}, "
            f"weight {row['weight']:g}, {row['state']}{on}{said}"
        )
    return "\n".join(lines)


def explain(
    file: Annotated[Path | None, typer.Argument(metavar="REQUEST.JSON", help="a chat request; - is stdin")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="instead of the request's own")] = None,
    config: ConfigOption = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="instead: a past request, by its answer's x-request-id")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    master_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a chat request would be at its provider, and what is lost, without sending it; or, with --request-id,
    what became of a past one and why, asked of the running gateway."""
    if request_id is not None:
        if file is not None:
            fail("give a file or --request-id, not both", 2)
        show_exchange(request_id, url, master_key, as_json=as_json)
        return
    if file is None:
        fail("give the file of a chat request, or - for stdin; or --request-id of a past one", 2)
    show(file, model, config, as_json=as_json)
