"""`/model/*`: deployments made at run time serve at once, on every process, and their credentials stay sealed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provider import FaultProvider
from tests.promises.support import MASTER, Running, body, eventually, served

pytestmark = pytest.mark.anyio
VAULT = {"store": {"encryption_key": "correct-horse-battery-staple"}}
CANARY = "sk-canary-of-a-stored-model-77aa"


def files_with(folder: Path, text: bytes) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text in file.read_bytes()]


async def post(gateway: Running, path: str, payload: Any) -> tuple[int, Any]:
    answer = await gateway.http.post(gateway.url + path, json=payload, headers={"authorization": f"Bearer {MASTER}"})
    return answer.status_code, answer.json()


async def test_a_stored_model_serves_at_once_and_on_other_processes(tmp_path: Path, faults: FaultProvider) -> None:
    place = {
        "provider": "openai",
        "model": "gpt-x",
        "api_key": CANARY,
        "base_url": f"{faults.base_url}/v1",
        "price": "free",
    }
    async with served(tmp_path, faults.base_url, top=VAULT) as one, served(tmp_path, faults.base_url, top=VAULT) as two:
        key = await one.mint()
        assert (await one.chat(key, body("fresh"))).status_code == 404
        status, made = await post(one, "/model/new", {"model_name": "fresh", "model_id": "m1", "deployment": place})
        assert status == 200, made
        assert made["deployment"]["api_key"] == "***"
        assert (await one.chat(key, body("fresh"))).status_code == 200
        assert faults.requests[-1].headers["authorization"] == f"Bearer {CANARY}"

        async def is_there() -> bool:
            return (await two.chat(key, body("fresh"))).status_code == 200

        await eventually(is_there)
        names = (await one.http.get(f"{one.url}/v1/models", headers={"authorization": f"Bearer {key}"})).json()["data"]
        assert "fresh" in {model["id"] for model in names}

        status, changed = await post(one, "/model/update", {"model_id": "m1", "deployment": {"api_key": CANARY + "-2"}})
        assert (status, changed["deployment"]["model"]) == (200, "gpt-x")
        assert (await one.chat(key, body("fresh"))).status_code == 200
        assert faults.requests[-1].headers["authorization"] == f"Bearer {CANARY}-2"

        assert not files_with(tmp_path, CANARY.encode())
        info = await one.admin("/model/info")
        assert {row["model_id"]: row["source"] for row in info["data"]}["m1"] == "database"
        assert CANARY not in str(info)

        assert (await post(one, "/model/delete", {"id": "m1"}))[0] == 200
        assert (await one.chat(key, body("fresh"))).status_code == 404
        assert (await post(one, "/model/delete", {"id": "m1"}))[0] == 404

        async def is_gone() -> bool:
            return (await two.chat(key, body("fresh"))).status_code == 404

        await eventually(is_gone)


async def test_names_users_know_are_taken(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top=VAULT) as gateway:
        payload = {
            "model_name": "known",
            "litellm_params": {
                "model": "openai/gpt-4o", "api_key": CANARY, "api_base": f"{faults.base_url}/v1", "rpm": 10,
                "input_cost_per_token": 0.0000025, "output_cost_per_token": 1e-05,
            },
            "model_info": {"id": "m2", "access_groups": ["beta"]},
        }  # fmt: skip
        status, made = await post(gateway, "/model/new", payload)
        assert status == 200, made
        assert made["deployment"]["price"] == {"input": "2.5", "output": "10"}
        beta = await gateway.mint(models=["beta"])
        assert (await gateway.chat(beta, body("known", max_tokens=5))).status_code == 200
        other = await gateway.mint(models=["gamma"])
        assert (await gateway.chat(other, body("known"))).status_code == 403


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model_name": "m"}, "deployment"),
    ({"model_name": "m", "deployment": {"provider": "opnai", "model": "x"}}, "provider"),
    ({"model_name": "m", "deployment": {"provider": "openai", "model": "x"}}, "provider"),
    ({"model_name": "m", "deployment": {"provider": "openai", "model": "x", "api_key": "k", "weigth": 1}}, "weigth"),
    ({"model_name": "m", "deployment": {"provider": "openai", "model": "x", "api_key": "os.environ/HOME"}}, "api_key"),
    ({"model_name": "m", "deployment": {"provider": "openai", "model": "x", "api_key": "${HOME}"}}, "api_key"),
    ({"model_name": "m", "litellm_params": {"model": "openai/x", "api_key": "k", "bogus": 1}}, "bogus"),
    ({"model_name": "m", "litellm_params": {}, "deployment": {}}, "litellm_params"),
    (
        {"model_name": "m", "deployment": {"provider": "openai", "model": "x", "api_key": "k", "base_url": "ftp://x"}},
        "base_url",
    ),
]


async def test_what_is_wrong_is_named_and_stores_nothing(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top=VAULT) as gateway:
        for payload, param in BAD:
            status, answer = await post(gateway, "/model/new", payload)
            assert (status, answer["error"]["param"]) == (400, param), (payload, answer)
        assert all(row["source"] == "file" for row in (await gateway.admin("/model/info"))["data"])


async def test_without_an_encryption_key_no_credential_is_stored(tmp_path: Path, faults: FaultProvider) -> None:
    place = {"provider": "openai", "model": "x", "api_key": CANARY, "base_url": f"{faults.base_url}/v1"}
    async with served(tmp_path, faults.base_url) as gateway:
        status, answer = await post(gateway, "/model/new", {"model_name": "m", "deployment": place})
        assert (status, answer["error"]["code"]) == (400, "encryption_key_missing")


async def test_a_row_sealed_with_another_key_is_left_out_and_harms_no_other(
    tmp_path: Path, faults: FaultProvider
) -> None:
    place = {"provider": "openai", "model": "x", "api_key": CANARY, "base_url": f"{faults.base_url}/v1"}
    async with served(tmp_path, faults.base_url, top=VAULT) as gateway:
        assert (await post(gateway, "/model/new", {"model_name": "m", "deployment": place}))[0] == 200
    other = {"store": {"encryption_key": "another-key-of-sufficient-length"}}
    async with served(tmp_path, faults.base_url, top=other) as gateway:
        key = await gateway.mint()
        assert (await gateway.chat(key, body("m"))).status_code == 404
        assert (await gateway.chat(key, body("gpt"))).status_code == 200


async def test_changes_made_at_once_all_stand(tmp_path: Path, faults: FaultProvider) -> None:
    """Each is answered with 200; of two that read the same row before, one would take the other's back."""
    place = {"provider": "openai", "model": "gpt-x", "base_url": f"{faults.base_url}/v1", "price": "free"}
    place["api_key"] = CANARY
    wanted = {
        "weight": 7,
        "order": 3,
        "drop_params": True,
        "max_output_tokens": 9,
        "tags": ["blue"],
        "params": {"seed": 1},
    }
    async with served(tmp_path, faults.base_url, top=VAULT) as one, served(tmp_path, faults.base_url, top=VAULT) as two:
        status, made = await post(one, "/model/new", {"model_name": "fresh", "model_id": "m1", "deployment": place})
        assert status == 200, made
        changes = [{"model_id": "m1", "deployment": {name: value}} for name, value in wanted.items()]
        found = await asyncio.gather(
            *(post(gateway, "/model/update", change) for gateway, change in zip([one, two] * 3, changes, strict=True))
        )
        assert {status for status, _ in found} == {200}, found
        info = await one.admin("/model/info", model_id="m1")
        assert info["data"][0]["deployment"] | wanted == info["data"][0]["deployment"]
