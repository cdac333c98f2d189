"""*Secrets stay in.* Canary credentials (provider keys, headers, stored keys, master key, virtual keys, passwords in
URLs) go through every error path with every logger at DEBUG: none is found in output, answers, metrics, database or
journal – raw, URL-encoded, base64, JSON-escaped, hexadecimal, or in part.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from sidecar.app import build_app
from sidecar.config import ConfigError, load_config
from sidecar.errors import without_credentials
from tests.faults.provider import Fault, FaultProvider
from tests.promises.support import MASTER as MASTER_OF_PROMISES
from tests.promises.support import Running, body, config_file, eventually, process, served
from tests.servers.redis import LocalServer

pytestmark = pytest.mark.anyio

# Every one with characters that look different in JSON, URLs and base64, and none of a shape that says "key".
OPENAI_KEY = 'Kanarie/1+openai"Qx7\\v0==zT4mLw'
CLAUDE_KEY = 'Kanarie/2+claude"Wy8\\n1==uR5kPd'
HEADER = 'Kanarie/3+header"Ez9\\r2==iO6jSa'
STORED_KEY = 'Kanarie/4+stored"Ra0\\t3==oP7hDf'
MASTER = 'sk-Kanarie/5+master"Tb1\\b4==pA8gFh'
REDIS = 'Kanarie/6+redis"Yc2\\f5==sD9fGj'
VAULT = 'Kanarie/7+vault"Ud3\\u6==dF0dHk'
POSTGRES = 'Kanarie/8+postgres"Ie4\\x7==fG1sJl'
PROXY = 'Kanarie/9+proxy"Of5\\a8==gH2aKz'
WRONG = "sk-Kanarie0wrongPg6wrong9hJ3qLx0123456789abcdefgh"
PART = 8
LOUD = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
logging.getLogger().setLevel(logging.DEBUG)
logging.raiseExceptions = True
"""
"""As `sitecustomize`: every logger of the process at DEBUG, whatever the configuration says."""


@functools.cache
def spellings(secret: str) -> frozenset[str]:
    """Every way a secret could be read in a text, and its parts: of 15 characters in a row one part is among them."""
    raw = secret.encode()
    found = {secret[at : at + PART] for at in range(0, len(secret) - PART + 1, PART)}
    for safe in ("", "/", "/+"):
        found |= {quote(secret, safe=safe), quote_plus(secret, safe=safe), quote(secret, safe=safe).lower()}
    escaped = json.dumps(secret)[1:-1]
    found |= {escaped, escaped.replace("/", "\\/"), json.dumps(escaped)[1:-1], repr(secret)[1:-1], raw.hex()}
    for shift in range(3):
        # What stands before the secret moves its base64: leave out the characters neighbours have a share in.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * shift + raw).decode().rstrip("=")
            found.add(text[shift + 1 if shift else 0 : len(text) - 1])
    return frozenset(found)


def leaks(where: str, text: str, secrets: list[str]) -> list[str]:
    found = []
    for secret in secrets:
        for spelling in spellings(secret):
            at = text.find(spelling)
            if at >= 0:
                around = text[max(0, at - 200) : at + 100]
                found.append(f"{where}: {secret[:20]}… as {spelling!r} in …{around!r}…")
                break
    return found


def test_the_search_finds_every_spelling() -> None:
    for text in (
        f"x{OPENAI_KEY}y", quote(OPENAI_KEY), json.dumps({"a": OPENAI_KEY}), json.dumps(json.dumps({"a": OPENAI_KEY})),
        OPENAI_KEY.encode().hex(), OPENAI_KEY[5:20], repr({"a": OPENAI_KEY}), f"{OPENAI_KEY!r}",
        str(OPENAI_KEY.encode()),
        *(base64.b64encode(b"user:password"[:n] + OPENAI_KEY.encode() + b"!").decode() for n in range(6)),
    ):  # fmt: skip
        assert leaks("", text, [OPENAI_KEY]), text
    assert not leaks("", "Kanarie and nothing else", [OPENAI_KEY])


def echoes(secret: str) -> Iterator[tuple[Fault, bool]]:
    """Answers of a provider that repeats the credential it was sent, and whether a stream was asked for."""
    error = {"message": f"no good: {secret}", "type": secret, "code": secret, "param": secret}
    bodies = [
        json.dumps({"error": error}), json.dumps({"error": f"{secret} is not it"}),
        json.dumps({"detail": [secret, error]}),
        json.dumps([{"error": {"message": f"Authorization: Bearer {secret}", "details": {"k": secret}}}]), secret,
        f"<html>{secret}</html>", f"who is {secret}?", "x" * (1000 - len(secret) // 2) + secret, secret + "y" * 5000,
        json.dumps({"type": "error", "error": {"type": "authentication_error", "message": f"x-api-key {secret}"}}),
        json.dumps({"message": "y" * (999 - len(secret)) + secret + secret}),
    ]  # fmt: skip
    for status in (200, 302, 400, 401, 403, 404, 409, 413, 418, 422, 429, 500, 503, 529):
        for text in bodies:
            headers = (("x-debug", secret), ("retry-after", secret),
                       ("location", f"http://127.0.0.1:1/?k={secret}"), ("set-cookie", f"k={secret}"))  # fmt: skip
            yield Fault("status", status=status, body=text.encode(), headers=headers), status == 503
    event = (("content-type", "text/event-stream"),)
    choice = {"index": 0, "delta": {"role": "assistant", "content": "one"}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    first = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    for name in (b"", b"event: error\n"):
        for text in [*bodies[:3], '{"broken": "' + secret, secret]:
            last = name + b"data: " + text.encode() + b"\n\n"
            for whole in (last, first + last):
                yield Fault("status", status=200, body=whole, headers=event), True


class Witness:
    """Everything the gateway answers: status line's headers and bodies."""

    def __init__(self, gateway: Running, key: str) -> None:
        self._gateway = gateway
        self._key = key
        self.texts: list[tuple[str, str]] = []
        self.statuses: dict[int, int] = {}

    async def call(self, method: str, path: str, *, key: str | None = None, **more: Any) -> int:
        token = self._key if key is None else key
        headers = {"authorization": f"Bearer {token}"} | more.pop("headers", {})
        answer = await self._gateway.http.request(method, self._gateway.url + path, headers=headers, **more)
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        self.texts.append((f"{method} {path} -> {answer.status_code}", f"{head}\n\n{answer.text}"))
        return answer.status_code

    async def chat(self, payload: Any, **more: Any) -> int:
        return await self.call("POST", "/v1/chat/completions", json=payload, **more)

    def leaks(self, secrets: list[str]) -> list[str]:
        return [leak for where, text in self.texts for leak in leaks(where, text, secrets)]


def deployments(faults: FaultProvider, folder: Path) -> dict[str, Any]:
    """`top` of a configuration that names its secrets in all three ways: file, variable, in place."""
    (folder / "claude.key").write_text(CLAUDE_KEY + "\n")
    common = {"price": {"input": 1, "output": 2}, "max_output_tokens": 64, "headers": {"x-tenant": "${CANARY_HEADER}"}}
    gpt = {"provider": "openai", "model": "gpt-1", "api_key": "${CANARY_OPENAI}", "base_url": f"{faults.base_url}/v1"}
    claude = {"provider": "anthropic", "model": "claude-1", "api_key": f"${{file:{folder}/claude.key}}"}
    models = {
        "gpt": gpt,
        "claude": claude | {"base_url": faults.base_url},
        "slow": gpt | {"timeouts": {"total_s": 0.2, "first_byte_s": 0.2, "gap_s": 0.2}},
        "refused": gpt | {"base_url": "http://127.0.0.1:1/v1"},
        "not-tls": gpt | {"base_url": faults.base_url.replace("http:", "https:") + "/v1"},
        "no-host": gpt | {"base_url": "https://nowhere.invalid/v1"},
    }
    return {
        "auth": {"master_key": MASTER},
        "log": {"level": "debug", "access": True},
        "models": [{"name": name, "deployments": [common | fields]} for name, fields in models.items()],
    }


ENV = {"CANARY_OPENAI": OPENAI_KEY, "CANARY_HEADER": HEADER, "CANARY_VAULT": VAULT, "SIDECAR_MASTER_KEY": MASTER}


async def mint(gateway: Running, **fields: Any) -> str:
    headers = {"authorization": f"Bearer {MASTER}"}
    answer = await gateway.http.post(f"{gateway.url}/key/generate", headers=headers, json=fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["key"])


async def provoke(witness: Witness, faults: FaultProvider, key: str) -> None:
    """Every refusal of ours, every failure of the provider's."""
    chat = "/v1/chat/completions"
    for wrong in (WRONG, "Kanarie", OPENAI_KEY, key[:-1], key + "x"):
        await witness.chat(body(), key=wrong)
    for headers in (
        {"authorization": f"Basic {WRONG}"},
        {"x-api-key": WRONG, "authorization": "x"},
        {"api-key": WRONG},
    ):
        await witness.chat(body(), headers=headers)
    for name in ("GET", "PUT", "DELETE"):
        await witness.call(name, chat)
    for content in (b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"model": 1}'):
        await witness.call("POST", chat, content=content)
    for more in ({"api_key": "x"}, {"n": "x"}, {"messages": 1}, {"stream": "x"}, {"tools": 1}):
        await witness.chat(body() | more)
        await witness.chat(body("claude") | more)
    await witness.call("POST", chat, content=b"x", headers={"content-encoding": "gzip"})
    for model, secret in (("gpt", OPENAI_KEY), ("claude", CLAUDE_KEY), ("gpt", HEADER)):
        for fault, is_stream in itertools.islice(echoes(secret), 0, None, 7 if secret == HEADER else 1):
            faults.script(fault)
            await witness.chat(body(model, stream=is_stream))
    for model in ("gpt", "claude"):
        for stream in (False, True):
            for kind in ("cut", "reset", "malform", "ends", "done_only", "empty", "null", "html", "no_usage"):
                faults.script(Fault(kind, after=2))  # type: ignore[arg-type]
                await witness.chat(body(model, stream=stream))
    for stream in (False, True):
        faults.script(Fault("silent"))
        await witness.chat(body("slow", stream=stream))
        for model in ("refused", "not-tls", "no-host"):
            await witness.chat(body(model, stream=stream))
        faults.reset()


async def look_everywhere(witness: Witness, key: str) -> None:
    """Every page that shows something."""
    for path in (
        "/metrics",
        "/healthz",
        "/readyz",
        "/health/liveliness",
        "/v1/models",
        "/nothing",
        "/config",
        "/debug",
    ):
        await witness.call("GET", path)
    for path in (
        "/key/list",
        "/model/info",
        "/spend/logs?limit=1000",
        "/spend/keys",
        "/key/info",
        "/audit",
        "/config/yaml",
    ):
        await witness.call("GET", path)
        await witness.call("GET", path, key=MASTER)
    for path in ("/key/generate", "/key/update", "/key/block", "/model/new", "/model/update", "/model/delete"):
        await witness.call("POST", path, json={})
        await witness.call("POST", path, json={"key": WRONG, "api_key": STORED_KEY}, key=MASTER)
        await witness.call("POST", path, content=f'{{"key": "{WRONG}"'.encode(), key=MASTER)
    deployment = {"provider": "openai", "model": "x", "api_key": STORED_KEY, "price": "free"}
    for fields in (
        {"base_url": f"http://u:{quote(STORED_KEY)}@h/"}, {"api_key": [STORED_KEY]}, {"weight": STORED_KEY},
        {"base_url": STORED_KEY}, {"headers": {"x": f"{STORED_KEY}\n"}}, {"price": STORED_KEY},
    ):  # fmt: skip
        await witness.call(
            "POST", "/model/new", json={"model_name": "m", "deployment": deployment | fields}, key=MASTER
        )
    await witness.call(
        "POST", "/model/new", json={"model_name": "stored", "model_id": "stored", "deployment": deployment}, key=MASTER
    )
    await witness.call("GET", "/model/info", key=MASTER)


def stored_bytes(folder: Path) -> Iterator[tuple[str, str]]:
    """Database, its side files and journal; not what the operator wrote."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and (file.name.startswith("sidecar.db") or "journal" in file.parts[-2:][0]):
            yield str(file.relative_to(folder)), file.read_bytes().decode("latin-1")


async def test_no_error_path_of_the_process_shows_a_secret(
    faults: FaultProvider, tmp_path: Path, start_redis: Callable[..., LocalServer]
) -> None:
    redis = start_redis("redis", "--requirepass", REDIS)
    store = {
        "redis_url": f"redis://default:{quote(REDIS, safe='')}@127.0.0.1:{redis.port}/0",
        "encryption_key": "${CANARY_VAULT}", "deadline_s": 3,
    }  # fmt: skip
    top = deployments(faults, tmp_path) | {"store": store}
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "sitecustomize.py").write_text(LOUD)
    env = ENV | {"PYTHONPATH": python_path(tmp_path / "loud")}
    async with process(tmp_path, faults.base_url, env=env, top=top) as gateway:
        key = await mint(gateway, max_budget=1000, rpm_limit=100_000)
        poor = await mint(gateway, rpm_limit=1)
        spent = await mint(gateway, max_budget=0)
        dead = [await mint(gateway, duration="1s"), await mint(gateway, blocked=True)]
        secrets = [OPENAI_KEY, CLAUDE_KEY, HEADER, STORED_KEY, MASTER, REDIS, VAULT, WRONG, key, poor, spent, *dead]
        witness = Witness(gateway, key)
        for payload in (body(), body("claude", stream=True)):
            assert await witness.chat(payload) == 200
        sent = [seen.headers for seen in faults.requests]
        assert [(h.get("authorization"), h.get("x-api-key"), h["x-tenant"]) for h in sent] == [
            (f"Bearer {OPENAI_KEY}", None, HEADER), (None, CLAUDE_KEY, HEADER),
        ]  # fmt: skip
        await provoke(witness, faults, key)
        for other in (poor, poor, spent, *dead):
            await witness.chat(body(), key=other)
        await look_everywhere(witness, key)
        await gateway_row_count(witness, at_least=100)
        assert {200, 400, 401, 403, 404, 405, 429, 502, 504} <= set(witness.statuses), witness.statuses
        # Now the stores fail: a frozen, then a dead Redis; a database whose tables are gone.
        witness.statuses.clear()
        redis.freeze()
        await witness.chat(body())
        redis.thaw()
        redis.kill()
        await witness.chat(body())
        with sqlite3.connect(tmp_path / "sidecar.db", timeout=60) as database:
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            kept = list(stored_bytes(tmp_path))
            for name in names:
                if not name.startswith("sqlite_"):
                    database.execute(f'ALTER TABLE "{name}" RENAME TO "gone_{name}"')
        database.close()
        await look_everywhere(witness, key)
        await witness.chat(body(), key="sk-" + "a" * 43)
        assert 503 in witness.statuses, witness.statuses
    output = (tmp_path / "output.log").read_text(errors="replace")
    assert "DEBUG" in output
    assert "no such table" in output
    found = witness.leaks(secrets) + leaks("output", output, secrets)
    for name, text in [*kept, *stored_bytes(tmp_path)]:
        found += leaks(name, text, secrets)
    assert not found, "\n\n".join(found[:20])


PASTED = (
    "sk-" + "Kq3vXz7Lm2" * 4 + "abc",
    "sk-ant-api03-Kq3vXz7Lm2-Pw8_Rt5Ys1Hd6",
    "sk-proj-Kq3vXz7Lm2Pw8Rt5Ys1Hd6",
    "AKIAKQ3VXZ7LM2PW8RT5",
    "AIzaKq3vXz7Lm2Pw8Rt5Ys1Hd6Nf4",
    "hf_Kq3vXz7Lm2Pw8Rt5Ys1Hd6",
    "gsk_Kq3vXz7Lm2Pw8Rt5Ys1Hd6",
    "xai-Kq3vXz7Lm2Pw8Rt5Ys1Hd6",
    "github_pat_Kq3vXz7Lm2Pw8Rt5Ys1Hd6",
    "eyJKq3vXz7Lm2.eyJPw8Rt5Ys1Hd6.Nf4",
    "Bearer Kq3vXz7Lm2Pw8Rt5Ys1Hd6",
)
"""Keys as people paste them into the wrong field."""


@pytest.mark.parametrize("pasted", PASTED)
async def test_a_key_pasted_into_another_field_is_blanked(
    pasted: str, faults: FaultProvider, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    top = {"log": {"access": True}}
    async with served(tmp_path, faults.base_url, top=top) as gateway:
        every = await gateway.mint()
        witness = Witness(gateway, every)
        narrow = await gateway.mint(models=["gpt"])
        for model in (pasted, f"openai/{pasted}", f"gpt {pasted}", f"{pasted},{pasted}"):
            assert await witness.chat(body(model)) == 404
            assert await witness.chat(body(model), key=narrow) in (403, 404)
        for name in ("gpt", "claude"):
            for more in ({pasted: 1}, {"metadata": {pasted: 1}}, {"tool_choice": pasted}, {"reasoning_effort": pasted}):
                await witness.chat(body(name) | more)
        await witness.chat(body(), headers={"x-request-id": pasted})
        await witness.call("POST", "/key/generate", json={pasted: 1}, key=MASTER_OF_PROMISES)
        await witness.call("POST", "/key/delete", json={"keys": [pasted]}, key=MASTER_OF_PROMISES)
        await witness.call("GET", f"/v1/{quote(pasted)}")
        await gateway.rows(at_least=1)
        for path in ("/metrics", "/spend/logs?limit=1000", "/audit"):
            await witness.call("GET", path, key=MASTER_OF_PROMISES)
    assert "***" in "".join(text for _, text in witness.texts), "nothing was blanked: this looks at nothing"
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith('{"exchange_id"')]
    assert [line["model"] for line in lines[:2]] == ["***", "***"]
    found = witness.leaks([pasted]) + leaks("access log", json.dumps(lines), [pasted])
    for name, text in stored_bytes(tmp_path):
        found += leaks(name, text, [pasted])
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4o-mini-2024-07-18", "claude-sonnet-4-5-20250929", "pplx-70b-online", "hf:meta-llama/Llama-3.3-70B",
        "accounts/fireworks/models/llama-v3p1-405b-instruct", "task-sk-oriented", "anthropic.claude-3-5-sonnet-v2:0",
        "ft:gpt-4o:organization:custom-suffix:ABCdef123", "max_completion_tokens", "skeleton-key-of-a-very-long-name",
        "x-key_rotation_interval", "risk-assessment-model-of-the-year",
    ],
)  # fmt: skip
def test_names_of_models_and_fields_are_not_taken_for_keys(name: str) -> None:
    assert without_credentials(f"The model '{name}' and no other") == f"The model '{name}' and no other"


def python_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


async def gateway_row_count(witness: Witness, *, at_least: int) -> None:
    """The failures above have their rows, so the database that is searched below holds them."""

    async def there() -> bool:
        await witness.call("GET", "/spend/logs?limit=1000", key=MASTER)
        return len(json.loads(witness.texts[-1][1].split("\n\n", 1)[1])["data"]) >= at_least

    await eventually(there, name=lambda: f"{at_least} rows")


@pytest.mark.parametrize("proxy", ["dead", "refusing", "talkative"])
async def test_the_password_of_an_upstream_proxy_stays_in(
    proxy: str, faults: FaultProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    address = "127.0.0.1:1" if proxy == "dead" else faults.base_url.removeprefix("http://")
    top = {"upstream": {"proxy": f"http://user:{quote(PROXY, safe='')}@{address}"}}
    async with served(tmp_path, "http://faraway.invalid", top=top, deployment={"allow_plain_http": True}) as gateway:
        witness = Witness(gateway, await gateway.mint())
        for model in ("gpt", "claude"):
            for stream in (False, True):
                if proxy != "dead":
                    headers = (("proxy-authenticate", "Basic realm=x"),)
                    text = b"you are not user" if proxy == "refusing" else b"<html>go away</html>"
                    faults.script(
                        Fault("status", status=407 if proxy == "refusing" else 500, body=text, headers=headers)
                    )
                assert await witness.chat(body(model, stream=stream)) >= 400
        await witness.call("GET", "/metrics")
    if proxy != "dead":
        password = base64.b64decode(faults.requests[0].headers["proxy-authorization"].removeprefix("Basic "))
        assert password.decode() == f"user:{PROXY}"
    assert len(caplog.records) > 10
    found = witness.leaks([PROXY, MASTER]) + leaks("log", caplog.text, [PROXY, MASTER])
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("case", ["unreachable", "no such database"])
def test_a_database_that_does_not_open_is_told_without_its_password(
    case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    password = quote(POSTGRES, safe="")
    url = f"postgresql://canary:{password}@127.0.0.1:1/sidecar"
    if case != "unreachable":
        server = request.getfixturevalue("postgres_url")
        user, host = server.split("//")[1].rsplit("/", 1)[0].split("@")
        url = f"postgresql://{user.split(':')[0]}:{password}@{host}/no_such_database"
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "sitecustomize.py").write_text(LOUD)
    file = config_file(tmp_path, "http://127.0.0.1:1", top={"store": {"database_url": url}, "log": {"level": "debug"}})
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "serve", "--config", str(file), "--port", "0"], cwd=tmp_path, timeout=240,
        env=os.environ | {"PYTHONPATH": python_path(tmp_path / "loud")}, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output = done.stdout.decode(errors="replace")
    assert done.returncode != 0
    assert len(output) > 100, output
    assert not leaks("output", output, [POSTGRES]), output


def model(**fields: Any) -> dict[str, Any]:
    return {"models": [{"name": "m", "deployments": [{"provider": "openai", "model": "m"} | fields]}]}


SECRET = 'Kanarie/q+config"Zw6\\z9==jK3sXm'
MISPLACED: dict[str, Any] = {
    "a number": {"server": {"port": SECRET}},
    "a name": model(model=f"{SECRET} x"),
    "a base URL": model(base_url=SECRET),
    "a credential in a URL": model(base_url=f"https://u:{quote(SECRET, safe='')}@h/"),
    "a header": model(headers={"x": f"{SECRET}\n{SECRET}"}),
    "a price": model(price=SECRET),
    "a switch": model(drop_params=SECRET),
    "a list for a key": {"auth": {"master_key": [SECRET]}},
    "a mapping for a key": {"auth": {"master_key": {"value": SECRET}}},
    "a key with a space": {"auth": {"master_key": f"{SECRET} x"}},
    "a database URL": {"store": {"database_url": f"mysql://u:{SECRET}@h/x"}},
    "a redis URL": {"store": {"redis_url": f"http://u:{SECRET}@h/x"}},
    "auth": {"auth": SECRET},
    "an unknown section": {"secrets": {"x": SECRET}},
    "an unknown key": {"auth": {"master_keys": SECRET}},
    "a level": {"log": {"level": SECRET}},
    "a duration": {"budget": {"duration": SECRET}},
    "a timezone": {"budget": {"timezone": SECRET}},
}


@pytest.mark.parametrize("how", ["in place", "by variable", "by file"])
@pytest.mark.parametrize("case", MISPLACED)
def test_a_configuration_fault_does_not_show_the_value(case: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    text = json.dumps(MISPLACED[case])
    if how != "in place" and json.dumps(SECRET)[1:-1] in text:
        reference = "${CANARY}" if how == "by variable" else f"${{file:{tmp_path}/secret}}"
        text = text.replace(json.dumps(SECRET)[1:-1], reference)
    file = tmp_path / "sidecar.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        build_app(load_config(file, {"CANARY": SECRET}), env={})
    assert not leaks("error", f"{caught.value} {caught.value!r}", [SECRET]), str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "auth: {master_key: 'SECRET",
        "auth:\n  master_key: SECRET: x\n",
        "auth:\n\tmaster_key: SECRET\n",
        "auth: {master_key: SECRET}\nauth: {master_key: SECRET}\n",
        "auth:\n  master_key: &SECRET x\n  key_cache_s: *SECRETx\n",
        "auth:\n  master_key: !SECRET x\n",
        "auth: [SECRET\n",
        "SECRET",
        "- SECRET",
    ],
)
def test_broken_yaml_does_not_show_its_lines(text: str, tmp_path: Path) -> None:
    secret = "Kanarie7qconfigZw6z9jK3sXm"
    file = tmp_path / "sidecar.yaml"
    file.write_text(text.replace("SECRET", secret))
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert not leaks("error", f"{caught.value} {caught.value!r}", [secret]), str(caught.value)
