"""docs/configuration.md names every key, each with its true default; every example on the pages loads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from sidecar.cli import app
from sidecar.config import ConfigError, load_config
from sidecar.config.environment import KNOWN_VARIABLES, setting_names
from sidecar.config.models import Config
from sidecar.types import Secret
from tests.docs.support import DOCS, REPO, Block, all_blocks, blocks, pages, rows_with

PAGE = DOCS / "configuration.md"
SPECIAL_DEFAULTS = {
    "auth": "a mapping",
    "models[].deployments[].base_url": "the provider's",
    "models[].deployments[].price": "the price list's",
}
"""Where the default is more than the model's."""

ELSEWHERE = {"auth.issuers[].": "oidc.md", "auth.introspection[].": "oidc.md"}
"""Keys explained on another page, by the last part of their names."""


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation (`list[X]`, `X | None`, `Annotated[X, …]`), if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part)) is not None), None)


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def words_in(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in words_in(part)]


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its path. A section is not a key, unless it may be a word or a list instead."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        below = model_in(field.annotation)
        if below is None:
            yield path, field
            continue
        is_plain = field.annotation is below
        if not is_plain:
            yield path, field
        yield from keys(below, path + ("[]." if is_list(field.annotation) else "."))


ALL_KEYS = dict(keys(Config))
KEYS = {path: field for path, field in ALL_KEYS.items() if not path.startswith(tuple(ELSEWHERE))}


def shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, Secret):
        return f"`{default.reveal()}`"
    if isinstance(default, (int, float, Decimal)):
        return f"`{default:g}`"
    return f"`{default}`"


def documented() -> dict[str, dict[str, str]]:
    rows = rows_with(PAGE.read_text("utf-8"), "key", "type", "default", "meaning")
    names = [row["key"].strip("`") for row in rows]
    assert len(names) == len(set(names)), "a key stands twice"
    return dict(zip(names, rows, strict=True))


def test_every_key_is_documented_and_nothing_else() -> None:
    assert set(documented()) == set(KEYS)
    assert len(KEYS) > 50


@pytest.mark.parametrize(("prefix", "page"), ELSEWHERE.items())
def test_keys_explained_elsewhere_are_named_there(prefix: str, page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    named = set(re.findall(r"`([a-z_0-9]+)`", text)) | set(re.findall(r"\b([a-z_0-9]+):", text))
    wanted = {path.rpartition(".")[2] for path in ALL_KEYS if path.startswith(prefix)}
    assert wanted
    assert wanted - named == set()


@pytest.mark.parametrize("path", sorted(KEYS))
def test_the_default_is_the_one_on_the_page(path: str) -> None:
    row = documented()[path]
    assert row["default"] == SPECIAL_DEFAULTS.get(path, shown(KEYS[path].default))


@pytest.mark.parametrize("path", sorted(p for p, field in KEYS.items() if words_in(field.annotation)))
def test_the_words_a_key_takes_are_on_the_page(path: str) -> None:
    for word in words_in(KEYS[path].annotation):
        assert f"`{word}`" in documented()[path]["type"]


def test_every_variable_a_page_names_exists() -> None:
    known = {f"SIDECAR_{name.upper()}" for name in setting_names()} | KNOWN_VARIABLES
    for page in pages():
        named = set(re.findall(r"\bSIDECAR_[A-Z0-9_]*[A-Z0-9]\b", page.read_text("utf-8")))
        assert named <= known, page
    assert set(re.findall(r"\bSIDECAR_[A-Z_]+\b", PAGE.read_text("utf-8"))) >= KNOWN_VARIABLES


EXAMPLES = [block for block in all_blocks("yaml") if block.mark == "sidecar.yaml"]


@pytest.mark.parametrize("block", EXAMPLES, ids=str)
def test_an_example_loads_as_it_stands(block: Block, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-from-a-file-0123456789\n")
    file = tmp_path / "sidecar.yaml"
    file.write_text(re.sub(r"\$\{file:[^}]*\}", f"${{file:{secret}}}", block.text))
    env = dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", block.text), "sk-some-value-0123456789")
    load_config(file, env)


def test_readme_and_configuration_page_have_an_example() -> None:
    assert {block.page for block in EXAMPLES} >= {"README.md", "docs/configuration.md"}


def test_the_faults_on_the_page_are_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(PAGE)
    index = next(i for i, block in enumerate(found) if block.mark == "faulty.yaml")
    command, *printed = found[index + 1].text.splitlines()
    assert command == "$ sidecar config check faulty.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty.yaml").write_text(found[index].text)
    result = CliRunner().invoke(app, ["config", "check", "faulty.yaml"], env={"ANTHROPIC_API_KEY": "sk-x"})
    assert result.exit_code == 2
    assert result.stderr.splitlines() == printed


def test_check_of_the_example_prints_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(b for b in blocks(DOCS / "cli.md") if "config check examples" in b.text)
    monkeypatch.chdir(REPO)
    env = dict.fromkeys(("SIDECAR_MASTER_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"), "sk-0123456789abcdef")
    result = CliRunner().invoke(app, ["config", "check", "examples/sidecar.yaml"], env=env)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == block.text.splitlines()[1:]


def test_a_misspelt_override_is_refused_as_the_page_says() -> None:
    with pytest.raises(ConfigError, match="SIDECAR_STORE__REDIS_URL"):
        load_config(None, {"SIDECAR_STORE__REDIS_ULR": "redis://x"})
