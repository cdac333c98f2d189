"""The OpenAPI document: whole, true to the table – and schemathesis finds no call that gets a 500, an answer it does
not describe, or a good answer to what it forbids.

`SIDECAR_SCHEMATHESIS_S=600` makes the run longer and its seed new (`make test` makes the same calls each time).
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sidecar.admin.fields import Query
from tests.admin.conftest import Api
from tests.promises.support import MASTER, Running, served

pytestmark = pytest.mark.anyio

SECONDS = os.environ.get("SIDECAR_SCHEMATHESIS_S", "")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
"""Not that whatever the document allows is taken: some fields mean something together only."""


async def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = (await api.get("/openapi.json")).json()
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_document_has_every_endpoint_with_its_fields(api: Api) -> None:
    found = await document(api)
    described = {(method.upper(), path) for path, methods in found["paths"].items() for method in methods}
    assert described == {(endpoint.method, endpoint.path) for endpoint in api.endpoints}
    ids = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    for endpoint in api.endpoints:
        operation = found["paths"][endpoint.path][endpoint.method.lower()]
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        if not issubclass(endpoint.model, Query):
            (content,) = operation["requestBody"]["content"].values()
            schema = found["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            assert schema["additionalProperties"] is False
            names |= set(schema["properties"])
        assert names == set(endpoint.model.model_fields), endpoint.path


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_schema_is_one_and_every_reference_leads_somewhere(api: Api) -> None:
    found = await document(api)
    for schema in found["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [name for item in value.values() for name in references(item)]
        return [name for item in value for name in references(item)] if isinstance(value, list) else []

    named = {name.removeprefix("#/components/schemas/") for name in references(found)}
    assert named - set(found["components"]["schemas"]) == set()
    assert "Error" in named


BODIES: list[tuple[str, dict[str, Any], bool]] = [
    ("GenerateKey", {"max_budget": 1.5, "duration": "30d", "budget_limits": [{"max_budget": 1}]}, True),
    ("GenerateKey", {"max_budget": "0.5", "temp_budget_expiry": 5, "metadata": {"a": [1]}, "blocked": None}, True),
    ("GenerateKey", {"max_budget": -1}, False),
    ("GenerateKey", {"duration": "soon"}, False),
    ("GenerateKey", {"rpm_limit": 0}, False),
    ("GenerateKey", {"nonsense": 1}, False),
    ("UpdateKey", {"key": "sk-abc"}, False),
    ("UpdateKey", {"key": "0" * 64}, True),
    ("AddMembers", {"team_id": "t", "member": {"user_id": "u"}}, True),
    ("AddMembers", {"team_id": "t", "member": [{"user_id": "u", "role": "admin"}]}, True),
    ("AddMembers", {"team_id": "t", "member": [{"user_id": "u", "role": "boss"}]}, False),
    ("RegenerateKeyInPath", {}, True),
    ("RegenerateKeyInPath", {"key": "0" * 64}, False),
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_schemas_say_what_is_taken(api: Api) -> None:
    found = await document(api)
    for model, body, is_good in BODIES:
        validator = Draft202012Validator({"$ref": f"#/components/schemas/{model}", "components": found["components"]})
        assert validator.is_valid(body) is is_good, (model, body)


async def populated(gateway: Running) -> None:
    """Rows with the shortest ids, so that what the run makes up finds some."""
    bodies: dict[str, dict[str, Any]] = {
        "/organization/new": {"organization_id": "0"},
        "/team/new": {"team_id": "0"},
        "/user/new": {"user_id": "0"},
        "/budget/new": {"budget_id": "0"},
        "/customer/new": {"user_id": "0"},
        "/tag/new": {"name": "0"},
        "/team/member_add": {"team_id": "0", "member": {"user_id": "0"}},
        "/organization/member_add": {"organization_id": "0", "member": {"user_id": "0"}},
    }
    for path, body in bodies.items():
        answer = await gateway.http.post(gateway.url + path, json=body, headers={"authorization": f"Bearer {MASTER}"})
        assert answer.status_code == 200, answer.text


@pytest.mark.timeout(600)
async def test_schemathesis_finds_nothing(tmp_path: Path, database_url: str) -> None:
    store = {"database_url": database_url}
    async with served(tmp_path, "http://127.0.0.1:9", top={"store": store}) as gateway:
        await populated(gateway)
        answer = await gateway.http.get(gateway.url + "/openapi.json", headers={"authorization": f"Bearer {MASTER}"})
        operations = [(method, path) for path, item in answer.json()["paths"].items() for method in item]
        operations.remove(("get", "/openapi.json"))  # where the document is read from is left out by the command
        output = await schemathesis(gateway, tmp_path, "1" if database_url.startswith("sqlite") else "2")
    found = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", output)
    assert found is not None, output[-3000:]
    selected, there, tested = map(int, found.groups())
    assert selected == there == len(operations) > 70
    assert tested == there
    print(output[-400:])


async def schemathesis(gateway: Running, folder: Path, seed: str) -> str:
    """What the command prints; it finds nothing. Unless told how long, it does so much, however fast the machine is."""
    how = ["--max-time", SECONDS] if SECONDS else ["--max-examples", "8", "--seed", seed]
    run = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"), "run", f"{gateway.url}/openapi.json",
        "--header", f"Authorization: Bearer {MASTER}",
        "--checks", ",".join(CHECKS),
        "--phases", "coverage,fuzzing" if SECONDS else "fuzzing",
        *how,
        "--request-timeout", "60", "--suppress-health-check", "all",
        "--continue-on-failure", "--no-color", "--warnings", "off",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = (await run.communicate())[0].decode()
    assert run.returncode == 0, output[-20_000:]
    return output
