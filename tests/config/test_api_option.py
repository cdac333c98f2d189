"""`api` of a deployment: which of OpenAI's APIs is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import load_config
from sidecar.config.read import ConfigError

FILE = """\
models:
  - name: m
    deployments:
      - {provider: PROVIDER, model: gpt-1, api_key: k, base_url: "https://a.example", api: VALUE, price: free}
"""


def load(folder: Path, provider: str, value: str) -> str:
    file = folder / "sidecar.yaml"
    file.write_text(FILE.replace("PROVIDER", provider).replace("VALUE", value))
    return str(load_config(str(file), {}).models[0].deployments[0].api)


@pytest.mark.parametrize("provider", ["openai", "azure"])
@pytest.mark.parametrize("value", ["chat", "responses"])
def test_openai_and_azure_take_it(tmp_path: Path, provider: str, value: str) -> None:
    assert load(tmp_path, provider, value) == value


@pytest.mark.parametrize(
    ("provider", "value", "said"),
    [
        ("anthropic", "responses", "provider anthropic does not use api; remove it"),
        ("openai-responses", "responses", "provider openai-responses does not use api; remove it"),
        ("openai", "soap", "'models.0.deployments.0.api'"),
    ],
)
def test_others_and_other_words_are_faults(tmp_path: Path, provider: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, provider, value)
