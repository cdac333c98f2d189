"""Every endpoint × bad input: a 4xx that names the field, never a 500, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.admin.endpoint import Endpoint
from sidecar.admin.fields import Query
from tests.admin.conftest import Api
from tests.admin.test_keys_api import error_of

pytestmark = pytest.mark.anyio

NEEDED: dict[str, Any] = {
    "key": "0" * 64,
    "user_id": "it",
    "team_id": "it",
    "organization_id": "it",
    "budget_id": "it",
    "end_user_id": "it",
    "name": "it",
    "id": "it",
    "model_name": "it",
    "role": "internal_user",
    "exchange_id": "it",
    "request_id": "it",
    "cost": 1,
    "member": {"user_id": "it"},
    "user_ids": ["it"],
    "team_ids": ["it"],
    "organization_ids": ["it"],
    "budgets": ["it"],
    "names": ["it"],
    "keys": ["0" * 64],
}
"""What a field takes where it is required."""

NUL, LONE, LONG = "a\0b", "\ud800", "x" * 300
TEXT = ["", 1, True, [], {}, NUL, LONE, LONG]
LIST = ["x", 1, {}, [""], [1], [None], [NUL], [[]], ["x"] * 1001, [LONG]]
COUNT = ["", "5", 0, -1, 1.5, 10**30, True, [], {}]
MONEY = ["", "ten", -1, 1e-10, 10**9, True, [], {}, "NaN", "1e999", NUL]
DURATION = ["", "soon", "-5d", "0s", "2mo", 30, True, [], {}, "99999999999d"]
COUNTS = ["x", [], 1, {"m": 0}, {"m": "x"}, {"": 1}, {"m": None}, {NUL: 1}, {LONG: 1}]
ALIASES = ["x", [], 1, {"a": 1}, {"a": ""}, {"": "m"}, {"a": None}, {NUL: "m"}, {"a": NUL}, {LONG: "m"}, {"a": "m/*"}]
FLAG = ["yes", 1, 0, [], {}, ""]
INSTANT = ["", "soon", -1, 1e300, True, [], {}, "2027-13-01", NUL]
OBJECT = ["x", 1, [], True]
REFERENCE = ["", "x", 1, "0" * 63, "G" * 64, "sk-abc", "sk-" + "ü" * 20, NUL, [], {}, True]
MEMBER = ["x", 1, [], {}, [{}], {"user_id": ""}, {"user_id": "a", "role": "boss"}, {"user_id": "a", "x": 1}, ["a"]]
WINDOWS = [
    "x",
    {},
    [1],
    [{}],
    [{"max_budget": -1}],
    [{"max_budget": 1, "budget_duration": "x"}],
    [{"max_budget": 1}] * 2,
]
ROLE = ["", "root", 1, [], {}, "org_admin "]
BAD: dict[str, list[Any]] = {
    "cost": MONEY, "attempt": ["", "1", -1, 1.5, 10**30, True, [], {}],
    "max_budget": MONEY, "soft_budget": MONEY, "temp_budget_increase": MONEY, "max_budget_in_team": MONEY,
    "budget_duration": DURATION, "duration": DURATION, "grace_period": DURATION, "rotation_interval": DURATION,
    "rpm_limit": COUNT, "tpm_limit": COUNT, "max_parallel_requests": COUNT,
    "model_rpm_limit": COUNTS, "model_tpm_limit": COUNTS, "model_max_parallel_requests": COUNTS,
    "aliases": ALIASES, "model_aliases": ALIASES,
    "blocked": FLAG, "auto_rotate": FLAG, "auto_create_key": FLAG, "temp_budget_expiry": INSTANT,
    "metadata": [*OBJECT, {"a": LONE}, {NUL: 1}, {"a": "x" * 70_000}], "budget_limits": WINDOWS,
    "models": LIST, "tags": LIST, "key_aliases": LIST, "access_groups": LIST,
    "user_ids": [*LIST, []], "team_ids": [*LIST, []], "organization_ids": [*LIST, []], "budgets": [*LIST, []],
    "names": [*LIST, []], "keys": [*LIST, ["short"]], "key": REFERENCE, "member": MEMBER,
    "role": ROLE, "user_role": ROLE,
    "deployment": OBJECT, "litellm_params": OBJECT, "model_info": [*OBJECT, {"x": 1}, {"id": 1}],
}  # fmt: skip
"""Wrong in a body; every other field is a text."""

IN_QUERY: dict[str, list[str]] = {
    "page": ["0", "-1", "x", "", "1.5", "10000000"],
    "size": ["0", "-1", "x", "", "1001"],
    "limit": ["0", "x", "", "1001"],
    "blocked": ["maybe", "", "2"],
    "return_full_object": ["maybe", "", "2"],
    "since": ["soon", "", "-1", "nan", "1e400"],
    "until": ["soon", "", "-1", "nan", "1e400"],
    "key": ["", "x", "0" * 63, "%00"],
    "cursor": ["", "%27", "AAAA", "x" * 201],
    "role": ["", "root"],
}
"""Wrong in a query string; every other parameter is a text."""


def needed(endpoint: Endpoint) -> dict[str, Any]:
    fields = {n for n, field in endpoint.model.model_fields.items() if field.is_required()} - set(endpoint.path_fields)
    return {name: NEEDED[name] for name in fields}


def cases(endpoint: Endpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    """Field and body."""
    for name in endpoint.model.model_fields:
        if name not in endpoint.path_fields:
            for value in BAD.get(name, TEXT):
                yield name, needed(endpoint) | {name: value}


async def events(api: Api) -> int:
    return int((await api.get("/audit")).json()["total_count"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_field_of_every_body_is_refused_and_named(api: Api) -> None:
    wrong, count = [], 0
    for endpoint in api.endpoints:
        if issubclass(endpoint.model, Query):
            continue
        path = endpoint.path.replace("{key}", "0" * 64)
        for name, body in cases(endpoint):
            content = json.dumps(body).encode()
            answer = await api.call(endpoint.method, path, content=content)
            error = answer.json().get("error", {})
            count += 1
            if (
                answer.status_code != 400
                or not str(error.get("param")).startswith(name)
                or name not in error["message"]
            ):
                wrong.append((endpoint.path, name, str(body)[:80], answer.status_code, error))
    assert wrong == []
    assert count > 3000
    assert await events(api) == 0


async def test_every_parameter_of_every_query_is_refused_and_named(api: Api) -> None:
    wrong, count = [], 0
    for endpoint in api.endpoints:
        if not issubclass(endpoint.model, Query):
            continue
        rest = needed(endpoint)
        for name in endpoint.model.model_fields:
            for value in IN_QUERY.get(name, ["", "%00", "x" * 256]):
                others = "".join(f"&{n}={v}" for n, v in rest.items() if n != name)
                answer = await api.call("GET", f"{endpoint.path}?{name}={value}{others}")
                error = answer.json().get("error", {})
                count += 1
                if answer.status_code != 400 or error.get("param") != name or name not in error["message"]:
                    wrong.append((endpoint.path, name, value[:20], answer.status_code, error))
    assert wrong == []
    assert count > 200


async def test_what_is_missing_or_unknown_is_named(api: Api) -> None:
    for endpoint in api.endpoints:
        path = endpoint.path.replace("{key}", "0" * 64)
        is_query = issubclass(endpoint.model, Query)
        for name in (fields := needed(endpoint)):
            rest = {n: v for n, v in fields.items() if n != name}
            sent = {"params": rest} if is_query else {"json": rest}
            error = error_of(await api.call(endpoint.method, path, **sent), 400)
            assert (error["param"], error["code"]) == (name, "missing_field"), endpoint.path
        for unknown in ("nonsense", "KEY", "__class__", "is_admin"):
            sent = {"params": fields | {unknown: "1"}} if is_query else {"json": fields | {unknown: 1}}
            error = error_of(await api.call(endpoint.method, path, **sent), 400)
            assert (error["param"], error["code"]) == (unknown, "unknown_field"), endpoint.path


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_is_no_json_object_is_refused_everywhere(api: Api) -> None:
    for endpoint in api.endpoints:
        path = endpoint.path.replace("{key}", "0" * 64)
        if issubclass(endpoint.model, Query):
            error_of(await api.call(endpoint.method, f"{path}?page=1&page=2"), 400)
            continue
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"a": NaN}',
            b'{"a":1,"a":2}',
            b"\xff",
            b'{"metadata":' + b"[" * 99_999,
        ):
            error_of(await api.call(endpoint.method, path, content=body), 400)
        error_of(await api.call(endpoint.method, path, content=b" " * 1_000_001), 413)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_other_methods_are_405_and_say_which(api: Api) -> None:
    methods: dict[str, list[str]] = {}
    for endpoint in api.endpoints:
        methods.setdefault(endpoint.path.replace("{key}", "0" * 64), []).append(endpoint.method)
    for path, known in methods.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}.difference(known):
            answer = await api.call(method, path)
            error_of(answer, 405)
            assert answer.headers["allow"] == ", ".join(known)
