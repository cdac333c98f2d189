"""What of the Dockerfile can be checked without an engine: the paths it copies, who runs, and what."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import typer.main

from sidecar.cli import app
from tests.helm.support import REPO, Helm, pod_of

LINES = [
    line for line in re.sub(r"\\\n", " ", (REPO / "Dockerfile").read_text()).splitlines() if line[:1] not in ("", "#")
]


def of(instruction: str) -> list[str]:
    return [line.split(None, 1)[1] for line in LINES if line.split()[0] == instruction]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets it into the build (its last matching line wins)."""
    sent = True
    for rule in (REPO / ".dockerignore").read_text().split():
        pattern = rule.lstrip("!").removeprefix("**/")
        if any(fnmatch(part, pattern) for part in ([path] if "/" not in path else [path, path.split("/")[-1]])):
            sent = rule.startswith("!")
    return sent


def test_the_build_copies_what_exists_and_what_is_sent_to_it() -> None:
    sources = [name for line in of("COPY") if "--from" not in line for name in line.split()[:-1]]
    assert sorted(sources) == ["LICENSE", "README.md", "pyproject.toml", "sidecar", "uv.lock"]
    assert [name for name in sources if not (REPO / name).exists()] == []
    assert [name for name in sources if not is_sent(name)] == []
    assert not is_sent(".venv")
    assert not is_sent(".sidecar")
    assert not is_sent("sidecar/__pycache__")


def test_the_package_needs_no_file_that_is_not_copied() -> None:
    text = (REPO / "pyproject.toml").read_text()
    needed = re.findall(r'^readme = "(.+)"$', text, re.MULTILINE) + re.findall(r'license-files = \["(.+)"\]', text)
    needed += re.findall(r'^packages = \["(.+)"\]$', text, re.MULTILINE)  # the wheel's, and mypy's
    assert set(needed) == {"README.md", "LICENSE", "sidecar"}
    assert [name for name in needed if not is_sent(name)] == []


def test_the_stages_have_one_python_and_it_satisfies_the_package() -> None:
    assert {line.split()[0] for line in of("FROM")} == {"python:3.11-slim"}
    assert 'requires-python = ">=3.11"' in (REPO / "pyproject.toml").read_text()


def test_the_image_runs_as_no_root_and_its_command_is_one_of_ours(helm: Helm) -> None:
    (user,) = of("USER")
    assert all(int(number) > 0 for number in user.split(":")), "runAsNonRoot needs numbers"
    (command,) = [json.loads(line) for line in of("CMD")]
    program = typer.main.get_command(app)
    context = program.make_context("sidecar", command[1:], resilient_parsing=True)
    _, serve, rest = program.resolve_command(context, command[1:])  # type: ignore[attr-defined]
    parameters = serve.make_context("serve", rest, parent=context).params
    assert parameters["config"] == Path("/etc/sidecar/sidecar.yaml")
    container = pod_of(helm.objects({}))["containers"][0]
    assert container["command"] == command
    assert "/etc/sidecar/sidecar.yaml" in [mount["mountPath"] for mount in container["volumeMounts"]]
