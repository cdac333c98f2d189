"""`GET /status`, `sidecar status` and the metrics, against running gateways: one of all processes leads."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.provider import FaultProvider
from tests.jobs.conftest import Webhook
from tests.promises.support import MASTER, Running, body, eventually, process, served

pytestmark = pytest.mark.anyio


async def jobs_of(running: Running) -> dict[str, dict[str, Any]]:
    return {job["name"]: job for job in (await running.admin("/status"))["jobs"]}


async def until_run(running: Running, name: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while not (found := (await jobs_of(running))[name])["runs"]:
            await asyncio.sleep(0.1)
    return found


async def command(running: Running, *more: str) -> str:
    environment = {**os.environ, "SIDECAR_MASTER_KEY": MASTER}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", "status", "--url", running.url, *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment,
    )  # fmt: skip
    out, _ = await child.communicate()
    assert child.returncode == 0, out.decode()
    return out.decode()


async def test_a_key_rotates_and_a_soft_budget_is_told_by_a_running_gateway(
    tmp_path: Path, faults: FaultProvider, webhook: Webhook
) -> None:
    settings = {
        "rotation": {"webhook": {"url": webhook.url, "secret": "whsec_a2tr"}, "every_s": 1},
        "alerts": {"webhook": webhook.url, "every_s": 1},
    }
    async with process(tmp_path, faults.base_url, top={"jobs": settings, "server": {"workers": 2}}) as running:
        output = running.output
        assert output is not None
        await eventually(lambda: output.read_text().count("startup complete") == 2, 60, output.read_text)
        key = (await running.admin("/key/generate", {"rotation_interval": "1s", "auto_rotate": True}))["key"]
        spender = await running.mint(soft_budget="0.000001", key_alias="spender")
        assert (await running.chat(spender, body())).is_success
        bodies: list[Any] = []

        def is_told() -> bool:
            bodies[:] = [json.loads(data) for _, data in webhook.seen]
            return any("data" in told for told in bodies) and any("text" in told for told in bodies)

        await eventually(is_told, 60, lambda: f"told: {bodies}")
        new = next(told["data"]["key"] for told in bodies if "data" in told)
        texts = [told["text"] for told in bodies if "text" in told]
        assert len(texts) == 1
        assert "key *spender* has spent $0.000" in texts[0]

        async def works(token: str) -> bool:
            answer = await running.chat(token, body())
            return answer.is_success

        async with asyncio.timeout(60):
            while not (await works(new) and await works(key)):
                await asyncio.sleep(0.05)
        found = await running.admin("/status")
        assert found["leader"]["holder"].split(":")[0] == found["process"]["host"]
        assert (found["database"], found["store"]) == (
            {"kind": "sqlite", "state": "up", "failed_shippings": 0}, {"kind": "memory", "state": "up"},
        )  # fmt: skip
        metrics = (await running.http.get(running.url + "/metrics")).text
        for job in ("key_rotation", "flush"):
            assert re.search(rf'sidecar_job_last_run_timestamp_seconds\{{job="{job}"\}} 1\.\d+e\+09', metrics)
    assert webhook.url not in output.read_text()


async def test_status_says_when_each_job_ran_and_why_one_is_off(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top={"jobs": {"reports": {"monthly": False}}}) as running:
        flushed = await until_run(running, "flush")
        assert (flushed["state"], flushed["failures"], flushed["last_good_run"]) == ("waiting", 0, flushed["last_run"])
        ran = await until_run(running, "retention")
        assert (ran["state"], ran["last_error"], ran["failures"]) == ("waiting", None, 0)
        assert ran["next_run"] > ran["last_run"]
        await until_run(running, "key_rotation")
        found = await jobs_of(running)
        assert (found["soft_budgets"]["state"], found["soft_budgets"]["why"]) == ("off", "no webhook is configured")
        status = await running.admin("/status")
        assert status["process"]["is_leader"] is True
        assert status["leader"]["holder"].split(":")[1] == str(os.getpid())
        printed = await command(running)
        assert re.search(r"retention +waiting +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d +20\d\d", printed), printed
        assert re.search(r"weekly_report +off .*no webhook", printed)
        assert json.loads(await command(running, "--json"))["version"] == status["version"]


async def test_a_process_without_jobs_leads_nothing(tmp_path: Path, faults: FaultProvider) -> None:
    async with served(tmp_path, faults.base_url, top={"jobs": {"enabled": False}}) as running:
        found = await running.admin("/status")
        assert (found["leader"], found["process"]["is_leader"]) == (None, False)
        assert {job["state"] for job in found["jobs"] if job["name"] != "flush"} == {"off"}
        assert (await until_run(running, "flush"))["state"] == "waiting"  # each process ships its own rows


async def test_a_journal_that_cannot_be_written_is_told_before_and_while_it_refuses(
    tmp_path: Path, faults: FaultProvider, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = {"journal_dir": str(tmp_path / "file" / "journal")}
    async with served(tmp_path, faults.base_url, top={"store": store}) as running:
        assert "cannot be written (Not a directory)" in caplog.text
        key = await running.mint()
        for _ in range(3):
            answer = await running.chat(key, body())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_not_writable")
        assert caplog.text.count("cannot be written") == 1, "not once for each request"
        assert (await running.admin("/status"))["journal"] == {"state": "down", "refused": 3}
        metrics = (await running.http.get(running.url + "/metrics")).text
        assert "sidecar_journal_refused_total 3.0" in metrics
        (tmp_path / "file").unlink()
        assert (await running.chat(key, body())).status_code == 200
        assert "written again; 3 rows were refused" in caplog.text
        assert (await running.admin("/status"))["journal"] == {"state": "up", "refused": 3}
    assert not faults.requests[1:]
