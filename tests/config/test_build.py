"""From settings to deployments, catalog and master key."""

from __future__ import annotations

import stat
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from sidecar.config import Config, ConfigError, load_config
from sidecar.config.build import build_catalog, deployments, ensure_master_key, global_budgets, global_limits
from sidecar.spend.cost import FREE, UNPRICED, Price, Rates
from sidecar.types import Budget, Limits, Secret, Timeouts
from tests.config.support import load

LISTED = Price("priced", Rates(Decimal(1), Decimal(2)))
FILE = """\
models:
  - name: a
    deployments:
      - {provider: openai, model: m, api_key: k1, weight: 3, limits: {rpm: 5}, timeouts: {total_s: 9}}
      - {provider: vllm, model: n, price: free, headers: {X-Team: blue}, params: {top_k: 4}, order: 2}
      - {provider: groq, model: o, api_key: k2, price: {input: 0.1, output: "0.2", cache_read: 0.01}}
  - name: openai/*
    deployments: [{provider: openai, model: "*", api_key: k3, base_url: "https://h/v1/"}]
limits: {rpm: 7}
budget: {max_usd: 0.1, duration: 1d}
"""


def test_deployments_carry_everything_the_file_says(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def resolve(provider: str, model: str) -> Price:
        asked.append((provider, model))
        return LISTED

    first, second, third, wild = deployments(load(tmp_path, FILE), resolve, {"OPENAI_API_KEY": "unused"})
    assert asked == [("openai", "m")]
    assert (first.deployment_id, first.group, first.base_url) == ("a#0:openai", "a", "https://api.openai.com/v1")
    assert (first.api_key, first.weight, first.limits, first.price) == (Secret("k1"), 3, Limits(rpm=5), LISTED)
    assert first.timeouts == Timeouts(total_s=9)
    assert (second.price, second.headers, second.params, second.order) == (
        FREE,
        ((b"x-team", b"blue"),),
        {"top_k": 4},
        2,
    )
    assert third.price == Price("priced", Rates(Decimal("0.1"), Decimal("0.2"), cache_read=Decimal("0.01")))
    assert (wild.group, wild.model, wild.base_url, wild.price) == ("openai/*", "*", "https://h/v1", UNPRICED)
    assert len({d.deployment_id for d in (first, second, third, wild)}) == 4


def test_a_wildcard_is_priced_by_the_name_asked_for(tmp_path: Path) -> None:
    catalog = build_catalog(load(tmp_path, FILE), {})
    known, unknown = catalog.group("openai/gpt-4o")[0], catalog.group("openai/nobody-knows")[0]
    assert known.price.status == "priced"
    assert unknown.price.status == "unpriced"


def test_without_models_the_keys_of_the_environment_make_wildcards() -> None:
    env = {"OPENAI_API_KEY": " sk-o\n", "ANTHROPIC_API_KEY": "sk-a", "GROQ_API_KEY": ""}
    catalog = build_catalog(load_config(None, env), env)
    assert catalog.names == ("openai/*", "anthropic/*")
    (claude,) = catalog.group("anthropic/claude-sonnet-4-5")
    assert (claude.model, claude.base_url) == ("claude-sonnet-4-5", "https://api.anthropic.com")
    assert claude.price.status == "priced"
    assert catalog.group("openai/gpt-4o")[0].api_key == Secret("sk-o")


def test_global_limits_and_budget_are_exact(tmp_path: Path) -> None:
    config = load(tmp_path, FILE)
    assert global_limits(config) == Limits(rpm=7)
    assert global_budgets(config) == (Budget(100_000_000, "1d"),)
    assert global_budgets(Config()) == ()


def test_a_master_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key, file = ensure_master_key(Config(), folder)
    assert file == folder / "master_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert key.reveal().startswith("sk-")
    assert len(key.reveal()) == 46
    assert ensure_master_key(Config(), folder) == (key, None)
    assert [f.name for f in folder.iterdir()] == ["master_key"]


def test_starters_at_the_same_time_agree_on_one_master_key(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        found: list[tuple[Secret, Path | None]] = []
        barrier = threading.Barrier(4)

        def start(folder: Path = folder, found: list = found, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            found.append(ensure_master_key(Config(), folder))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({key for key, _ in found}) == 1
        assert sum(file is not None for _, file in found) == 1


def test_a_configured_master_key_needs_no_folder(tmp_path: Path) -> None:
    config = load(tmp_path, "auth: {master_key: sk-mine}\n")
    assert ensure_master_key(config, tmp_path / "none") == (Secret("sk-mine"), None)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", ["", "\n", "short", "é" * 30])
def test_a_damaged_master_key_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "master_key").write_text(content)
    with pytest.raises(ConfigError, match=r"delete the file|not ASCII"):
        ensure_master_key(Config(), tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set SIDECAR_MASTER_KEY"):
        ensure_master_key(Config(), tmp_path / "file" / "data")
