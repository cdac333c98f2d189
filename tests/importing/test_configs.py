"""Whole configurations: what is written loads with our own strict loader, and each line of the source has a verdict."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sidecar.config import Config, load_config
from sidecar.config.models import PriceSettings
from sidecar.importing import Imported, import_litellm
from tests.importing.support import ALL, CONFIGS, leaves, read_plain


def written(imported: Imported, folder: Path) -> Config:
    """What our loader makes of the file; strict, so a key it does not know would raise."""
    file = folder / "sidecar.yaml"
    file.write_text(imported.text, encoding="utf-8")
    return load_config(file, imported.placeholders)


def loaded(name: str, folder: Path) -> tuple[Imported, Config]:
    imported = import_litellm(CONFIGS / f"{name}.yaml")
    return imported, written(imported, folder)


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_what_is_written_loads(file: Path, tmp_path: Path) -> None:
    imported = import_litellm(file)
    config = written(imported, tmp_path)
    names = {(line.file, line.key) for line in imported.report.lines if line.to == "models.name"}
    assert sum(len(model.deployments) for model in config.models) == len(names)


@pytest.mark.parametrize("file", [f for f in ALL if f.stem != "includes"], ids=lambda file: file.stem)
def test_every_key_has_exactly_one_line(file: Path) -> None:
    report = import_litellm(file).report
    assert Counter(line.key for line in report.lines) == Counter(leaves(read_plain(file)))


def test_every_key_of_every_included_file_has_a_line_of_its_file() -> None:
    report = import_litellm(CONFIGS / "includes.yaml").report
    here = Counter(Path(line.file).name for line in report.lines)
    assert here == {"includes.yaml": 7, "models.yaml": 4, "more.yaml": 2, "settings.yaml": 3}
    replaced = next(
        line for line in report.lines if line.key == "litellm_settings.num_retries" and "not used" in line.text
    )
    assert Path(replaced.file).name == "includes.yaml"


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_a_line_says_where_it_stands(file: Path) -> None:
    for line in import_litellm(file).report.lines:
        text = Path(line.file).read_text().splitlines()[line.line - 1]
        if file.stem == "anchors":
            continue  # a merged key stands where it is merged
        last = re.split(r"[.\[]", line.key.rstrip("]"))[-1]
        if not last.isdigit():
            assert last in text, f"{line}: {text}"


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_no_secret_is_copied(file: Path) -> None:
    imported = import_litellm(file)
    whole = imported.text + imported.report.text() + str(imported.report.as_json())
    source = file.read_text() + "".join(part.read_text() for part in (CONFIGS / "parts").iterdir())
    canaries = set(re.findall(r"[\w-]*canary[\w-]*", source))
    assert canaries
    assert not {canary for canary in canaries if canary in whole}


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_what_has_no_equivalent_stands_in_the_written_file_too(file: Path) -> None:
    imported = import_litellm(file)
    comments = re.sub(r"\n#\s+", " ", imported.text)
    for line in imported.report.lines:
        if line.status == "no equivalent" and not line.text.startswith("its deployment is kept as a comment"):
            assert f"{line.file}:{line.line}: {line.key}: " in comments


def test_an_office_of_two_vendors(tmp_path: Path) -> None:
    imported, config = loaded("small_team", tmp_path)
    writer = config.models[0]
    assert writer.name == "writer"
    assert [(d.provider, d.model, d.weight, d.limits.rpm) for d in writer.deployments] == [
        ("anthropic", "claude-sonnet-4-5", 120, 120),
        ("openai", "gpt-4.1", 40, 40),
    ]
    first, second = writer.deployments
    assert first.params == {"max_tokens": 2048, "temperature": 0.3}
    assert (first.timeouts.first_byte_s, first.timeouts.gap_s) == (90, 90)
    assert (second.timeouts.first_byte_s, second.timeouts.gap_s) == (45, 12.5)
    assert (first.drop_params, second.drop_params) == (True, True)
    assert first.allowed_params == ["seed", "logit_bias"]
    assert config.models[1].deployments[0].params["stop"] == ["###", "END"]
    assert (config.routing.retries, config.routing.cooldown_s) == (3, 20)
    assert config.routing.aliases == {"default-writer": "writer", "secret-writer": "writer"}
    assert config.routing.fallbacks == {"writer": ["quick"], "quick": ["writer"]}
    assert (str(config.budget.max_usd), config.budget.duration) == ("250.5", "1mo")
    moved = {variable.name for variable in imported.report.variables if variable.moved_from}
    assert moved == {"OPENAI_API_KEY", "SIDECAR_MASTER_KEY", "DATABASE_URL"}


def test_a_cluster_of_environment_variables(tmp_path: Path) -> None:
    imported, config = loaded("kubernetes", tmp_path)
    assert "redis://:${REDIS_PASSWORD}@redis.cache.svc:6379/0" in imported.text
    assert [(d.weight, d.order) for d in config.models[0].deployments] == [(3, 1), (1, 1), (1, 2)]
    local = config.models[1].deployments[0]
    assert (local.provider, local.base_url, local.price, local.allow_plain_http) == (
        "vllm", "http://vllm.models.svc:8000/v1", "free", False,
    )  # fmt: skip
    assert config.limits.concurrency == 400
    assert config.models[0].deployments[0].timeouts.total_s == 900


def test_prices_are_a_million_times_theirs(tmp_path: Path) -> None:
    _, config = loaded("prices", tmp_path)
    price = config.models[0].deployments[0].price
    assert isinstance(price, PriceSettings)
    assert [str(x) for x in (price.input, price.output, price.cache_read, price.cache_write)] == [
        "0.3", "1.2", "0.15", "0.375",
    ]  # fmt: skip


def test_what_may_be_called_by_access_group(tmp_path: Path) -> None:
    source = tmp_path / "config.yaml"
    source.write_text(
        "model_list:\n"
        "  - {model_name: a, litellm_params: {model: openai/gpt-4o}, model_info: {access_groups: [beta, eu]}}\n"
        "  - model_name: a\n"
        "    litellm_params: {model: openai/gpt-4o, api_key: os.environ/B}\n"
        "    model_info: {access_groups: [eu, odd one]}\n"
        "general_settings: {user_header_name: X-Person}\n"
        "litellm_settings: {max_end_user_budget_id: for-all}\n"
    )
    imported = import_litellm(source)
    config = written(imported, tmp_path)
    assert config.models[0].access_groups == ["beta", "eu"]
    assert (config.auth.end_user_header, config.auth.end_user_budget_id) == ("X-Person", "for-all")
    assert [line.status for line in imported.report.lines if "access_groups" in line.key] == [
        "taken", "taken", "taken", "no equivalent",
    ]  # fmt: skip


def test_each_vendor_s_prefix_is_the_provider_that_speaks_its_own_api(tmp_path: Path) -> None:
    imported, config = loaded("vendors", tmp_path)
    found = [
        (deployment.provider, deployment.model, deployment.base_url)
        for model in config.models
        for deployment in model.deployments
    ]
    assert found == [
        ("cohere", "command-a-03-2025", "https://api.cohere.com"),
        ("huggingface", "meta-llama/Llama-3.3-70B-Instruct:together", None),
        ("huggingface", "meta-llama/Llama-3.3-70B-Instruct", None),
        ("huggingface", "tgi", "https://abc.eu-west-1.aws.endpoints.huggingface.cloud/v1"),
        ("bedrock-invoke", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", None),
        ("bedrock", "meta.llama3-70b-instruct-v1:0", None),
        ("sagemaker", "my-endpoint", None),
        ("watsonx", "ibm/granite-4-h-small", "https://us-south.ml.cloud.ibm.com"),
        ("watsonx", "deployment/my-id", "https://us-south.ml.cloud.ibm.com"),
        ("databricks", "databricks-claude-sonnet-4-5", "https://ws.cloud.databricks.com/serving-endpoints"),
        ("azure", "my-gpt", "https://r.openai.azure.com"),
    ]
    by_name = {model.name: model.deployments[0] for model in config.models}
    assert by_name["granite"].project == "my-project"
    assert "DATABRICKS_API_KEY" in imported.placeholders  # that gateway reads it where a deployment names no key
    assert by_name["granite-deployed"].params == {"space_id": "my-space"}
    assert not [line for line in imported.report.lines if line.status == "no equivalent"]
