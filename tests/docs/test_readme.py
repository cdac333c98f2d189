"""The README followed word for word: its commands, its file, its Python, against a simulated provider.

Changed are only the port, the placeholders of credentials, and where the provider is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from sidecar.simulated import SimulatedProvider, serve
from tests.docs.support import REPO, Block, blocks
from tests.servers.ports import free_port

pytestmark = pytest.mark.anyio
README = REPO / "README.md"
BLOCKS = blocks(README)
SHELL = [block for block in BLOCKS if block.language == "sh"]
TIMEOUT_S = 120


class Newcomer:
    """Types what the README says, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "SIDECAR_SERVER__PORT": str(self.port),
            "SIDECAR_URL": self.url,
            "PYTHONPATH": str(REPO),
        }

    def typed(self, block: Block) -> str:
        return block.text.replace("127.0.0.1:4000", f"127.0.0.1:{self.port}").replace("…", "x-0123456789")

    @contextmanager
    def serving(self, script: str) -> Iterator[None]:
        """The script's last line is a server; it is stopped as Ctrl-C stops it."""
        with (self.folder / "log").open("w+") as log:
            process = subprocess.Popen(
                ["sh", "-e", "-c", script],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                end = time.monotonic() + TIMEOUT_S
                while not self._is_ready():
                    assert process.poll() is None, Path(log.name).read_text()
                    assert time.monotonic() < end, Path(log.name).read_text()
                    time.sleep(0.05)
                yield
            finally:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(TIMEOUT_S)

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


def one(blocks: list[Block], word: str) -> Block:
    found = [block for block in blocks if word in block.text]
    assert len(found) == 1, f"{len(found)} blocks of the README hold {word!r}"
    return found[0]


def test_with_nothing_but_provider_keys(newcomer: Newcomer) -> None:
    second = newcomer.typed(one(SHELL, "keys create"))
    # What curl does is done here: the machine may not have it.
    script, url = re.sub(r"^curl (\S+) -H .*\$KEY.*$", r'echo "$KEY"', second, flags=re.MULTILINE), newcomer.url
    assert f"curl {url}/v1/models" in second
    with newcomer.serving(newcomer.typed(one(SHELL, "export OPENAI_API_KEY"))):
        key = newcomer.run("sh", "-e", "-c", script).strip()
        headers = {"Authorization": f"Bearer {key}"}
        models = httpx2.get(f"{url}/v1/models", headers=headers, timeout=60, trust_env=False).json()["data"]
    assert {model["id"] for model in models} == {"openai/*", "anthropic/*"}


async def test_with_the_file_a_client_and_a_host_app(newcomer: Newcomer) -> None:
    import anyio.to_thread

    async with serve(SimulatedProvider()) as provider:
        text = one([b for b in BLOCKS if b.mark == "sidecar.yaml"], "models:").text
        simulated = f'model: sim-echo, base_url: "{provider}", price: {{input: 3, output: 15}}'
        changed = text.replace("model: claude-sonnet-4-5", simulated)
        assert changed != text
        (newcomer.folder / "sidecar.yaml").write_text(changed)
        await anyio.to_thread.run_sync(_use, newcomer)


def _use(newcomer: Newcomer) -> None:
    python = [block for block in BLOCKS if block.language == "python"]
    newcomer.env["ANTHROPIC_API_KEY"] = "x-0123456789"
    path = 'export PATH="$PWD/.venv/bin:$PATH"\n'
    with newcomer.serving(path + newcomer.typed(one(SHELL, "--config sidecar.yaml"))):
        key = newcomer.run("sh", "-e", "-c", f"{path}sidecar keys create --alias me --max-budget 5").strip()
        client = newcomer.typed(one(python, "client.chat")).replace("sk-x-0123456789", key)
        assert key in client
        lines = client.rstrip().splitlines()
        lines[-1] = f"print({lines[-1]}.choices[0].message.content)"
        assert newcomer.run(sys.executable, "-c", "\n".join(lines)) == "echo: Hello\n"
    mount = newcomer.typed(one(python, "app.mount"))
    check = (
        "from fastapi import FastAPI\nfrom fastapi.testclient import TestClient\napp = FastAPI()\n"
        f"{mount}\n"
        "client = TestClient(app)\n"
        f"answer = client.get('/llm/v1/models', headers={{'authorization': 'Bearer {key}'}})\n"
        "print(answer.status_code, [model['id'] for model in answer.json()['data']])\n"
    )
    assert newcomer.run(sys.executable, "-c", check) == "200 ['claude']\n"


def test_the_make_targets_it_names_exist() -> None:
    named = set(re.findall(r"(?m)^make (\w+)", "".join(block.text for block in SHELL)))
    makefile = (REPO / "Makefile").read_text("utf-8")
    assert named >= {"demo", "test"}
    assert [name for name in named if not re.search(rf"(?m)^{name}:", makefile)] == []


def test_every_middleware_in_the_picture_is_a_file() -> None:
    named = re.findall(r"│ (\w+)Middleware ", README.read_text("utf-8"))
    assert len(named) == 8
    for name in named:
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        assert (REPO / "sidecar" / "middleware" / f"{snake}.py").exists()
