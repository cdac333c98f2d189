"""Code on the pages: Python compiles and, where marked so, runs; YAML and JSON are YAML and JSON."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

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
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_examples_of_the_library_are_run() -> None:
    assert {block.page for block in RUNNABLE} >= {"docs/limits.md", "docs/middlewares.md"}


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert list(YAML(typ="safe").load_all(block.text))


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text)


def test_every_block_says_what_it_is() -> None:
    bare = [str(block) for block in all_blocks("") if block.page != "README.md"]
    assert bare == []
    assert len([b for b in blocks(REPO / "README.md") if not b.info]) <= 1  # the picture


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text("utf-8").splitlines()) < 150
