"""Code on the pages: Python compiles and, where marked so, runs; YAML and JSON are YAML and JSON."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from sidecar.config import load_config
from tests.docs.support import REPO, Block, all_blocks, blocks

PYTHON = all_blocks("python")
RUNNABLE = [block for block in PYTHON if block.mark == "run"]
YAML_BLOCKS = [block for block in all_blocks("yaml") if "{{" not in block.text]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_marked_python_runs_without_a_word(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_examples_of_the_library_are_run() -> None:
    assert {block.page for block in RUNNABLE} >= {"docs/limits.md", "docs/middlewares.md", "docs/translation.md"}


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert list(YAML(typ="safe").load_all(block.text))


FRAGMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "docs/spend.md": lambda part: {
        "models": [{"name": "m", "deployments": [{"provider": "openai", "model": "m", "api_key": "k", **part}]}]
    },
    "docs/oidc.md": lambda part: {"auth": {"issuers": part}},
    "docs/kubernetes.md": lambda part: part["config"],
}
"""Where a block is part of a configuration: what to put round it."""

_NOT_OURS = ("apiVersion:", "volumes:", "# prometheus.yml")


@pytest.mark.parametrize("block", [b for b in YAML_BLOCKS if not b.mark], ids=str)
def test_a_part_of_a_configuration_loads_within_one(block: Block, tmp_path: Path) -> None:
    if block.text.startswith(_NOT_OURS):
        return
    part = YAML(typ="safe").load(block.text)
    assert block.page in FRAGMENTS, f"{block}: a whole configuration is marked 'yaml sidecar.yaml'"
    file = tmp_path / "sidecar.yaml"
    file.write_text(json.dumps(FRAGMENTS[block.page](part)))
    url = {"DATABASE_URL": "sqlite:///x.db", "REDIS_URL": "redis://127.0.0.1"}
    load_config(file, dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", block.text), "sk-some-value-0123456789") | url)


def merged(values: Any, over: Any) -> Any:
    """As Helm merges values."""
    if not isinstance(values, dict) or not isinstance(over, dict):
        return over
    return values | {name: merged(values.get(name), value) for name, value in over.items()}


def test_the_chart_takes_the_values_the_page_shows() -> None:
    (block,) = (b for b in YAML_BLOCKS if b.text.startswith("image:"))
    schema = json.loads((REPO / "helm" / "values.schema.json").read_text("utf-8"))
    values = YAML(typ="safe").load((REPO / "helm" / "values.yaml").read_text("utf-8"))
    shown = YAML(typ="safe").load(block.text)
    assert set(shown) <= set(values)
    jsonschema.validate(merged(values, shown), schema)


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text)


def test_every_block_says_what_it_is() -> None:
    bare = [str(block) for block in all_blocks("") if block.page != "README.md"]
    assert bare == []
    assert len([b for b in blocks(REPO / "README.md") if not b.info]) <= 1  # the picture


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text("utf-8").splitlines()) < 150
