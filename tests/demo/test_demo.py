"""`sidecar demo` as a newcomer runs it: a process of its own, no environment to speak of, a narrow pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, int]:
    """What it printed, its temporary folder, its session id."""
    folder = tmp_path_factory.mktemp("demo")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "COLUMNS": "100"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "demo"],
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out + err
    return out, folder, process.pid


def one(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in:\n{text}"
    return found


def step(out: str, number: int) -> str:
    """The lines of one step."""
    return one(rf"(?ms)^{number}  .*?(?=^{number + 1}  |\Z)", out)[0]


def test_shows_what_was_sent_what_the_provider_got_and_what_came_back(ran: tuple[str, Path, int]) -> None:
    for number in (2, 3, 4):
        titles = one(r"╭.*╮", step(ran[0], number))[0]
        assert re.search(r"client sent.*provider got.*client (received|got)", titles)
    plain = step(ran[0], 2)
    assert '"model": "claude"' in plain
    assert '"model": "sim-echo"' in plain
    assert "chat.completion" in plain
    assert "POST /v1/chat/completions" in plain
    assert "POST /v1/messages" in plain


def test_streams_word_by_word_and_calls_a_tool(ran: tuple[str, Path, int]) -> None:
    streamed = step(ran[0], 3)
    assert '"stream": true' in streamed
    assert re.search(r'"content": "echo: ".*(?s:.*)"content": "again\."', streamed)
    assert '"finish_reason":' in streamed
    tool = step(ran[0], 4)
    assert '"input_schema"' in tool  # Anthropic's word for the schema
    assert '"tool_calls"' in tool
    assert "toolu_sim_1" in tool


def test_the_rate_limit_then_the_budget_refuse(ran: tuple[str, Path, int]) -> None:
    limited = step(ran[0], 5)
    one(r"3 more calls answered, then 429 requests_limit_exceeded", limited)
    assert 1 <= int(one(r"retry-after: (\d+) s", limited)[1]) <= 60
    one(r"[1-9]\d* more calls answered, then 429 budget_exceeded", step(ran[0], 6))


def test_every_answered_call_has_a_row_and_the_rows_sum_to_the_keys_spend(ran: tuple[str, Path, int]) -> None:
    ledger = step(ran[0], 7)
    answered, rows = one(r"(\d+) calls answered, (\d+) rows", ledger).groups()
    assert answered == rows
    costs = re.findall(r"settled\s*│.*│\s*([\d.]+)\s*│", ledger)
    assert len(costs) == int(rows)
    total = one(r"sum of the rows\s+([\d.]+)", ledger)[1]
    assert float(total) == pytest.approx(sum(map(float, costs)), abs=1e-12)
    spend = one(r"the key's spend\s+([\d.]+)\s+equal", ledger)[1]
    assert spend == total
    budget = one(r"its budget\s+([\d.]+)\s+kept", ledger)[1]
    assert 0 < float(spend) <= float(budget)


def test_leaves_neither_a_process_nor_a_file(ran: tuple[str, Path, int]) -> None:
    _, folder, session = ran
    left = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                left.append(process.cmdline())
        except (ProcessLookupError, psutil.Error):
            continue
    assert left == []
    assert list(folder.iterdir()) == []


def test_the_secrets_it_made_are_not_printed_whole(ran: tuple[str, Path, int]) -> None:
    assert not re.search(r"sk-[A-Za-z0-9_-]{20,}", ran[0])
