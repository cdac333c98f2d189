"""The library example does what it says, and importing it brings neither servers, databases nor clients along."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from examples.translate import ASKED, translate
from sidecar.errors import BadRequestError
from sidecar.translate import PROVIDERS, Head, get_provider, read_call
from tests.docs.support import REPO
from tests.translate.support import assert_anthropic_takes, fold

HEAVY = {
    "aiosqlite", "anyio", "asyncio", "asyncpg", "botocore", "email", "google", "h11", "httpx", "httpx2", "pydantic",
    "redis", "socket", "sqlalchemy", "ssl", "starlette", "typer", "uvicorn", "yaml",
}  # fmt: skip


def test_the_example_translates_both_ways() -> None:
    sent, got = translate()
    assert_anthropic_takes(json.loads(sent))
    folded = fold(got)
    assert (folded["content"], folded["finish"]) == ("Hi!", "stop")


def test_importing_the_library_loads_no_server_no_database_and_no_client_and_costs_little() -> None:
    code = (
        "import sys, time; before = time.process_time(); import sidecar.translate; "
        "print(time.process_time() - before); print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(REPO)!r}); {code}"]
    for _ in range(5):  # the machine may be slower than any
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        cpu_s, loaded = done.stdout.splitlines()
        if float(cpu_s) < 1.5:  # a tenth of it on a quiet machine
            break
    assert float(cpu_s) < 1.5
    assert "sidecar.translate.registry" in loaded.split()
    assert {name.partition(".")[0] for name in loaded.split()} & HEAVY == set()
    assert not [name for name in loaded.split() if name.startswith(("sidecar.config", "sidecar.upstream"))]


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_no_state(name: str) -> None:
    """The same object serves everybody: nothing of a call may stay on it."""
    provider = get_provider(name)
    before = dict(vars(provider))
    call = read_call(ASKED, model="m", options={"region": "eu-west-1", "project": "p"})
    assert call.is_stream
    provider.request(call)
    provider.stream(call, Head(200))
    provider.error(call, Head(500), b"{}")
    assert vars(provider) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 5000])
def test_what_is_no_request_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        read_call(body, model="m")
