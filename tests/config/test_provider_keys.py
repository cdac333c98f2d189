"""Without a file, provider keys of the environment make `provider/model` names work – those that were meant to."""

from __future__ import annotations

import pytest

from sidecar.config.environment import provider_keys
from sidecar.translate.registry import PROVIDERS


def test_a_key_opens_its_provider() -> None:
    found = provider_keys({"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": " sk-ant ", "GROQ_API_KEY": ""})
    assert {name: key.reveal() for name, key in found.items()} == {"openai": "sk-1", "anthropic": "sk-ant"}


@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "HF_TOKEN"])
def test_a_token_set_for_other_purposes_opens_nothing(name: str) -> None:
    assert any(provider.api_key_env == name for provider in PROVIDERS.values())
    assert provider_keys({name: "ghp_ambient"}) == {}


def test_a_provider_that_needs_more_than_a_key_is_not_opened_by_one() -> None:
    everything = {provider.api_key_env: "k" for provider in PROVIDERS.values() if provider.api_key_env}
    assert all(not PROVIDERS[name].needs_options for name in provider_keys(everything))
