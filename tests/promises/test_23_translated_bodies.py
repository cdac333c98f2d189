"""Promise 23 for every provider whose bodies are not the client's: a picture of 20 MB and a schema of 100 kB,
translated, while something else asks for liveness. Measured and judged as in `test_23_the_loop_never_blocks`: the CPU
between two turns of the gateway's loop against one `json.loads` of 20 MB there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.faults.provider import in_thread
from tests.promises.sizes import measured
from tests.promises.support import PROVIDER_KEY, Running, config_file
from tests.promises.test_23_the_loop_never_blocks import (
    GATEWAY,
    SIZE,
    ask,
    assert_holds,
    child,
    key,
    parse_s,
    url_in,
)
from tests.translate.dialects import DIALECTS, dialect_of

pytestmark = pytest.mark.anyio
__all__ = ["key", "parse_s"]
NAMES = [name for name in DIALECTS if name != "anthropic"]


@pytest.fixture(scope="module")
async def gateway(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("translated")
    with in_thread() as provider:
        models = []
        for name in NAMES:
            dialect = dialect_of(name)
            deployment = {
                "provider": name, "model": dialect.model, "api_key": PROVIDER_KEY, "price": {"input": 1, "output": 2},
                "base_url": provider.base_url + dialect.base_path, "max_output_tokens": 64, **dialect.options,
            }  # fmt: skip
            models.append({"name": name, "deployments": [deployment]})
        file = config_file(folder, provider.base_url, top={"models": models})
        async with (
            child(GATEWAY, str(file), folder=folder) as (process, said),
            httpx2.AsyncClient(timeout=120, trust_env=False, verify=False) as http,
        ):
            yield Running(url_in(said), http, process=process, folder=folder)


def schema(size: int) -> dict[str, Any]:
    """Of the kind real tools have: nested, with references, alternatives and enums."""
    address = {
        "type": "object",
        "properties": {
            "street": {"type": "string", "description": "Street and number, as it stands on the letter box."},
            "country": {"type": "string", "enum": ["DE", "AT", "CH", "FR", "IT"]},
            "floor": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "inside": {"$ref": "#/$defs/place"},
        },
        "required": ["street"],
        "additionalProperties": False,
    }
    count = size // len(json.dumps(address))
    places = {f"place_{number}": {**address, "description": f"Place number {number}."} for number in range(count)}
    leaf = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    return {"type": "object", "properties": places, "required": ["place_0"], "$defs": {"place": leaf}}


BIG = schema(100_000)
PICTURE = "data:image/png;base64,iVBORw0KGgo" + "AAAA" * (SIZE // 4) + "A"
BODIES: dict[str, dict[str, Any]] = {
    "a picture": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}],
    },
    "a tool's schema": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "place", "parameters": BIG}}],
    },
    "an answer's schema": {
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "places", "schema": BIG}},
    },
}


@pytest.mark.parametrize("shape", BODIES)
@pytest.mark.parametrize("name", NAMES)
async def test_translated_bodies_hold_the_loop_for_less_than_one_parse(
    gateway: Running, key: str, parse_s: float, name: str, shape: str
) -> None:
    content = json.dumps({"model": name, **BODIES[shape]}, separators=(",", ":")).encode()
    calls = 1 if shape == "a picture" else 4

    async def load() -> None:
        await asyncio.gather(*(ask(gateway, key, content) for _ in range(calls)))

    found = await assert_holds(gateway, load, parse_s, 1 if shape == "a picture" else 1 / 2)
    measured(23, f"{name}, {shape}, {len(content) / 1e6:.1f} MB: {found}; one json.loads {1000 * parse_s:.0f} ms")
