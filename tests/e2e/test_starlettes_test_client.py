"""A host app under Starlette's TestClient: an event loop for each request, or one for all of them; no lifespan for what
it mounts. Each loop's gateway ends with it, and nothing of it is lost or told of."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from sidecar.db import Database
from sidecar.simulated import SimulatedProvider, serve
from tests.promises.support import MASTER, config_file

pytestmark = pytest.mark.anyio

SCRIPT = """
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sidecar import build_app
from sidecar.config import load_config

app = FastAPI()
app.mount("/llm", build_app(load_config("sidecar.yaml"), migrate=True))
headers = {"authorization": "Bearer %s"}
body = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}


def call(client):
    assert client.get("/llm/v1/models", headers=headers).status_code == 200
    answer = client.post("/llm/v1/chat/completions", headers=headers, json=body)
    assert answer.status_code == 200, answer.text
    with client.stream("POST", "/llm/v1/chat/completions", headers=headers, json={**body, "stream": True}) as answer:
        assert answer.read().endswith(b"data: [DONE]\\n\\n")


for _ in range(3):
    call(TestClient(app))
for _ in range(2):
    with TestClient(app) as client:
        call(client)
"""
LEFT_BEHIND = (
    "Exception in thread",
    "Event loop is closed",
    "Task was destroyed",
    "was never awaited",
    "was never retrieved",
    "non-checked-in connection",
)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql and redis"])
async def test_every_request_is_answered_and_written_down(
    kind: str, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    store: dict[str, Any] = {"deadline_s": 30}
    if kind != "sqlite":
        store |= {"database_url": postgres_url, "redis_url": redis_url}

    def run(url: str) -> subprocess.CompletedProcess[str]:
        config_file(tmp_path, url, top={"store": store, "spend": {"flush_s": 3600}}, deployment={"model": "sim-echo"})
        return subprocess.run(
            (sys.executable, "-X", "dev", "-c", SCRIPT % MASTER),
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    async with serve(SimulatedProvider()) as url:
        done = await anyio.to_thread.run_sync(run, url)
    assert done.returncode == 0, done.stderr
    # SQLAlchemy may tell of a connection whose closing was cancelled; it is closed then.
    assert not [left for left in LEFT_BEHIND if left in done.stderr], done.stderr
    database = Database(store.get("database_url", f"sqlite:///{tmp_path}/sidecar.db"))
    try:
        async with asyncio.timeout(60), database.engine.connect() as connection:
            statuses = (await connection.exec_driver_sql("SELECT status, count(*) FROM spend GROUP BY 1")).all()
    finally:
        await database.aclose()
    assert [tuple(row) for row in statuses] == [("settled", 10)]
