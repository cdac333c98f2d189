"""*Nothing is dropped silently.* Every field of OpenAI's chat request, at every registered provider, is mapped, passed,
or refused with a 400 that names it; what a deployment's `drop_params` leaves out is named in the answer and in the row.
Seen on the wire: what the client sent, what the provider got.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import pytest

from sidecar.translate import PROVIDERS
from sidecar.translate.provider import OPENAI_CHAT_FIELDS
from sidecar.translate.vendors import OTHER_MODELS
from tests.faults.provider import FaultProvider
from tests.promises.support import PROVIDER_KEY, Running, served
from tests.translate.dialects import DISTINCT, dialect_of
from tests.translate.field_values import BESIDE, TOOL, USER, VALUES

pytestmark = pytest.mark.anyio

VENDOR_HEADERS = ("x-amzn-", "x-vertex-")
ASKED = VALUES | {field: [["another-model"]] for field in OTHER_MODELS}
TELLS_UNASKED = {name for name, provider in PROVIDERS.items() if not getattr(provider, "forces_usage", True)}


def model_of(name: str) -> str:
    """One that thinks, so that effort means something."""
    return f"{name}-1" if PROVIDERS[name].is_same_dialect else dialect_of(name).model


@pytest.fixture(scope="module")
async def every(provider_of_file: FaultProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Each registered provider strict, and again as `<name>-drops`."""
    url = provider_of_file.base_url
    models = [
        {
            "name": f"{name}{'-drops' if drops else ''}",
            "deployments": [
                {
                    "provider": name, "model": model_of(name), "api_key": PROVIDER_KEY, "drop_params": drops,
                    "base_url": url + dialect_of(provider).base_path, "price": {"input": 1, "output": 2},
                    **dialect_of(provider).options,
                }
            ],
        }
        for name, provider in DISTINCT.items()
        for drops in (False, True)
    ]  # fmt: skip
    async with served(tmp_path_factory.mktemp("every"), url, top={"models": models}) as running:
        yield running


def test_the_table_has_every_field_the_installed_sdk_can_send() -> None:
    from openai.types.chat import completion_create_params as params

    fields = {
        *params.CompletionCreateParamsNonStreaming.__annotations__,
        *params.CompletionCreateParamsStreaming.__annotations__,
    }
    assert VALUES.keys() == fields, "decide for each provider what happens to the new field"
    assert fields <= OPENAI_CHAT_FIELDS
    for name, provider in PROVIDERS.items():
        assert fields <= provider.params.keys() | provider.unsupported.keys(), name


def is_named(param: str, field: str) -> bool:
    return param == field or param.startswith((f"{field}.", f"{field}["))


async def sent(gateway: Running, faults: FaultProvider, key: str, payload: dict[str, Any]) -> tuple[Any, Any]:
    """(answer, what the provider got or None; its path under "", with the headers a vendor takes fields in)"""
    faults.requests.clear()
    answer = await gateway.chat(key, payload)
    assert len(faults.requests) == (answer.status_code == 200), answer.text
    if not faults.requests:
        return answer, None
    seen = faults.requests[0]
    fields = {name: value for name, value in seen.headers.items() if name.startswith(VENDOR_HEADERS)}
    return answer, {"": seen.target, **seen.json(), **fields}


@pytest.mark.parametrize("name", DISTINCT)
async def test_each_field_reaches_the_provider_or_is_refused_by_name(
    every: Running, faults: FaultProvider, name: str
) -> None:
    key = await every.mint()
    outcomes: dict[str, list[str]] = {"reached": [], "refused": []}
    own = {field: ASKED[field] for field in PROVIDERS[name].unsupported if field not in VALUES}
    plain: dict[str, Any] = {}
    for field, values in (VALUES | own).items():
        base = {"model": name, "messages": USER, **BESIDE.get(field, {})}
        if str(base) not in plain:
            _, plain[str(base)] = await sent(every, faults, key, base)
        without = plain[str(base)]
        for value in values:
            answer, got = await sent(every, faults, key, base if field == "model" else {**base, field: value})
            label = f"{name}: {field}={value!r}"
            assert "x-sidecar-dropped" not in answer.headers, label
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert answer.status_code == 400, label
                named = next(name for name in (field, *BESIDE.get(field, ())) if is_named(error["param"], name))
                assert named in error["message"], label
                outcomes["refused"].append(field)
                continue
            outcomes["reached"].append(field)
            if field == "model":
                said = got.get("model", got.get("model_id"))
                assert said == model_of(name) if said is not None else model_of(name) in unquote(got[""])
            elif field == "stream_options":
                # What it asks for shows in the answer; the provider is asked anyway, or tells without being asked.
                assert name in TELLS_UNASKED or '"prompt_tokens":11' in answer.text.replace(" ", ""), label
            else:
                assert got != without, f"{label} was dropped without a word"
    print(f"{name}: {len(outcomes['reached'])} values reached it, {len(outcomes['refused'])} refused by name")
    refused = set(outcomes["refused"])
    assert set(PROVIDERS[name].unsupported) <= refused
    if PROVIDERS[name].passes_unknown:
        assert refused == set(PROVIDERS[name].unsupported)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", [name for name, provider in DISTINCT.items() if provider.unsupported])
async def test_what_policy_drops_is_named_in_the_answer_and_in_the_row(
    every: Running, faults: FaultProvider, name: str, stream: bool
) -> None:
    key = await every.mint()
    base = {"model": f"{name}-drops", "messages": USER, "stream": stream}
    answer, without = await sent(every, faults, key, base)
    assert "x-sidecar-dropped" not in answer.headers
    unsupported = sorted(PROVIDERS[name].unsupported)
    for field in unsupported:
        # The last value of each asks for something whatever stands beside it.
        answer, got = await sent(every, faults, key, {**base, field: ASKED[field][-1]})
        assert (answer.status_code, answer.headers.get("x-sidecar-dropped")) == (200, field), answer.text
        assert got == without
    everything = {field: ASKED[field][-1] for field in unsupported}
    answer, got = await sent(every, faults, key, {**base, **everything})
    assert sorted(answer.headers["x-sidecar-dropped"].split(",")) == unsupported
    assert got == without
    rows = await every.rows(key, at_least=len(unsupported) + 2)
    assert sorted(row["dropped"] for row in rows) == sorted([[], *([field] for field in unsupported), unsupported])


@pytest.mark.parametrize("name", DISTINCT)
async def test_a_field_openai_does_not_have_is_passed_refused_or_named_too(
    every: Running, faults: FaultProvider, name: str
) -> None:
    key = await every.mint()
    payload = {"model": name, "messages": USER, "frobnicate": {"a": 1}}
    answer, got = await sent(every, faults, key, payload)
    if PROVIDERS[name].passes_unknown:
        assert got["frobnicate"] == {"a": 1}
        return
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "frobnicate")
    answer, got = await sent(every, faults, key, {**payload, "model": f"{name}-drops"})
    assert answer.headers["x-sidecar-dropped"] == "frobnicate"
    assert "frobnicate" not in got


NESTED = {
    "messages[0].frobnicate": {"messages": [{**USER[0], "frobnicate": "x"}]},
    "messages[0].content[0].frobnicate": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "frobnicate": "x"}]}]
    },
    "messages[1].audio": {"messages": [*USER, {"role": "assistant", "content": "yo", "audio": {"id": "a"}}, *USER]},
    "tools[0].function.frobnicate": {"tools": [{**TOOL, "function": {**TOOL["function"], "frobnicate": "x"}}]},
    "tool_choice.frobnicate": {
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}, "frobnicate": "x"}
    },
}  # fmt: skip
"""What stands deeper, by its place; tests/translate/test_nested_fields.py has every field in every place."""


@pytest.mark.parametrize("name", DISTINCT)
async def test_a_nested_field_reaches_the_provider_or_is_refused_with_its_place_or_named_as_dropped(
    every: Running, faults: FaultProvider, name: str
) -> None:
    key = await every.mint()
    for where, fields in NESTED.items():
        payload = {"model": name, "messages": USER, **fields}
        answer, got = await sent(every, faults, key, payload)
        if answer.status_code == 200:
            assert "x-sidecar-dropped" not in answer.headers
            outer = where.partition(".")[0].partition("[")[0]
            assert got[outer] == fields[outer], where
            continue
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, where)
        answer, got = await sent(every, faults, key, {**payload, "model": f"{name}-drops"})
        assert where in answer.headers["x-sidecar-dropped"].split(",")
        assert "frobnicate" not in str(got)


PARTS = {
    "text": {"type": "text", "text": "hi"},
    "image_url": {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    "file": {"type": "file", "file": {"file_id": "file-1"}},
}


@pytest.mark.parametrize(
    ("role", "part"), [*(("user", part) for part in PARTS), ("system", "text"), ("assistant", "text")]
)
async def test_a_field_within_a_part_is_refused_with_its_place_or_named_as_dropped(
    every: Running, faults: FaultProvider, part: str, role: str
) -> None:
    key = await every.mint()
    marked = {**PARTS[part], "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [*USER, {"role": role, "content": [marked]}]
    where = "messages[1].content[0].prompt_cache_breakpoint"
    answer, _ = await sent(every, faults, key, {"model": "anthropic", "messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, where)
    answer, got = await sent(every, faults, key, {"model": "anthropic-drops", "messages": messages})
    assert answer.headers["x-sidecar-dropped"] == where
    assert "prompt_cache_breakpoint" not in str(got)
    _, got = await sent(every, faults, key, {"model": "openai", "messages": messages})
    assert got["messages"] == messages


@pytest.mark.parametrize("part", ["input_audio", "refusal", "video_url", None])
async def test_a_content_part_that_cannot_be_said_is_refused_with_its_place(
    every: Running, faults: FaultProvider, part: str | None
) -> None:
    key = await every.mint()
    for model in ("anthropic", "anthropic-drops"):
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": part, str(part): {}}]}]
        answer, got = await sent(every, faults, key, {"model": model, "messages": messages})
        assert (answer.status_code, got) == (400, None)
        assert answer.json()["error"]["param"].startswith("messages[0].content[1]")
