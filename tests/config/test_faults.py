"""Every kind of bad configuration: the whole line with file, line, column, what is wrong and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import ConfigError, load_config
from tests.config.support import faults_of

ONE = "models:\n  - name: a\n    deployments:\n      - {provider: openai, model: m, api_key: k"
"""A model with one deployment, open for more keys; they stand on line 4."""

BAD: dict[str, tuple[str, str]] = {
    "unknown section": ("serve: {}\n", "1:1: unknown key 'serve'; did you mean 'server'?"),
    "unknown key": ("server:\n  prot: 1\n", "2:3: unknown key 'server.prot'; did you mean 'port'?"),
    "unknown key, nothing near": (
        "limits: {zzz: 1}\n",
        "1:10: unknown key 'limits.zzz'; known here: concurrency, rpm, tpm",
    ),
    "unknown key in a deployment": (
        ONE + ", api_kye: x}\n",
        "4:50: unknown key 'models.0.deployments.0.api_kye'; did you mean 'api_key'?",
    ),
    "an allowed field that would choose a destination": (
        ONE + ", allowed_params: [seed, api_base]}\n",
        "'api_base' chooses destination or credential, and no client may; remove it",
    ),
    "unknown key in auth": (
        "auth: {master_kee: x}\n",
        "1:8: unknown key 'auth.master_kee'; did you mean 'master_key'?",
    ),
    "unknown key in a price": (
        ONE + ", price: {input: 1, output: 1, cached: 1}}\n",
        "4:79: unknown key 'models.0.deployments.0.price.cached'; did you mean 'cache_read'?",
    ),
    "duplicate section": (
        "server: {port: 1}\nserver: {port: 2}\n",
        "2:1: the key 'server' stands here again (first on line 1); remove one",
    ),
    "duplicate key": (
        "server:\n  port: 1\n  host: h\n  port: 2\n",
        "4:3: the key 'port' stands here again (first on line 2); remove one",
    ),
    "key that is no text": ("server: {}\n1: 2\n", "2:1: the key '1' must be text; quote it"),
    "empty section": ("server:\nlog: {}\n", "'server' is empty; remove the line, or give it its keys"),
    "section of a wrong kind": (
        "server: [1]\n",
        "1:9: 'server': must be a mapping: {…}, or indented keys below it",
    ),
    "text for a number": ("server: {port: many}\n", "1:16: 'server.port': must be a whole number"),
    "true for a number": ("server: {port: true}\n", "1:16: 'server.port': must be a number, not true or false"),
    "fraction for a number": ("server: {port: 1.5}\n", "1:16: 'server.port': must be a whole number"),
    "number for a text": ("server: {host: 5}\n", "1:16: 'server.host': must be text; quote it"),
    "text for a truth": ("log: {access: maybe}\n", "1:15: 'log.access': must be true or false"),
    "mapping for a list": ("models: {}\n", "1:9: 'models': must be a list: […], or lines that begin with '- '"),
    "a port too far": ("server: {port: 70000}\n", "1:16: 'server.port': must be less than or equal to 65535"),
    "a host with a port": ("server: {host: 'http://x'}\n", "1:16: 'server.host': must be an address or a host name"),
    "not one of": ("log: {level: loud}\n", "1:14: 'log.level': must be 'debug', 'info', 'warning' or 'error'"),
    "auth of a wrong kind": ("auth: open\n", "1:7: 'auth': must be 'none' or a mapping such as {master_key:"),
    "auth none, not loopback": (
        "server: {host: 0.0.0.0}\nauth: none\n",
        "2:7: 'auth: none' needs server.host 127.0.0.1; give a master_key to listen elsewhere",
    ),
    "empty credential": ("auth: {master_key: ''}\n", "1:20: 'auth.master_key': must be text and not empty"),
    "credential with a space": ("auth: {master_key: 'a b'}\n", "1:20: 'auth.master_key': holds a character"),
    "NaN money": ("budget: {max_usd: .nan}\n", "1:19: 'budget.max_usd': must be a finite number"),
    "infinite money": ("budget: {max_usd: .inf}\n", "1:19: 'budget.max_usd': must be a finite number"),
    "NaN money as text": ("budget: {max_usd: 'NaN'}\n", "1:19: 'budget.max_usd': must be a finite number"),
    "negative money": ("budget: {max_usd: -1}\n", "1:19: 'budget.max_usd': must be greater than or equal to 0"),
    "money finer than we count": (
        "budget: {max_usd: '0.0000000001'}\n",
        "1:19: 'budget.max_usd': decimal input should have no more than 9 decimal places",
    ),
    "negative price": (
        ONE + ", price: {input: -1, output: 1}}\n",
        "4:65: 'models.0.deployments.0.price.input': must be greater than or equal to 0",
    ),
    "NaN price": (
        ONE + ", price: {input: .nan, output: 1}}\n",
        "4:65: 'models.0.deployments.0.price.input': must be a finite number",
    ),
    "half a price": (
        ONE + ", price: {input: 1}}\n",
        "4:57: 'models.0.deployments.0.price.output' is missing; add it",
    ),
    "price of a wrong kind": (
        ONE + ", price: cheap}\n",
        "4:57: 'models.0.deployments.0.price': must be 'free' or a mapping such as {input: 3, output: 15}",
    ),
    "bad duration": (
        "budget: {max_usd: 1, duration: 3y}\n",
        "1:32: 'budget.duration': not a duration; write a number and s, m, h, d or w (such as 30d), or 1mo",
    ),
    "duration without money": (
        "budget: {duration: 1d}\n",
        "1:20: a global budget's duration needs max_usd beside it; add it",
    ),
    "endless timeout": (
        ONE + ", timeouts: {gap_s: .inf}}\n",
        "4:68: 'models.0.deployments.0.timeouts.gap_s': must be a finite number",
    ),
    "timezone": ("budget: {timezone: Mars}\n", "1:20: not a timezone this machine knows; use a name such as UTC"),
    "timezone as a path": ("budget: {timezone: ../../etc/passwd}\n", "1:20: not a timezone this machine knows"),
    "database": ("store: {database_url: mysql://x}\n", "1:23: must begin with sqlite:/// or postgresql://"),
    "redis": ("store: {redis_url: 'http://x'}\n", "1:20: must begin with redis://, rediss:// or unix://"),
    "missing file": ("upstream: {ca_file: /no/such}\n", "1:21: no such readable file; mount it, or correct the path"),
    "half a certificate": ("upstream: {client_cert: /etc/passwd}\n", "client_cert and client_key belong together"),
    "proxy": ("upstream: {proxy: 'socks5://h'}\n", "1:19: must be the URL of an HTTP proxy"),
    "proxy with http2": (
        "upstream: {proxy: 'http://h:1', http2: true}\n",
        "1:40: is not spoken through a proxy; leave one of the two out",
    ),
    "no deployments": ("models: [{name: a, deployments: []}]\n", "1:33: 'models.0.deployments': needs at least one"),
    "missing deployments": ("models:\n  - name: a\n", "2:5: 'models.0.deployments' is missing; add it"),
    "name with a space": ("models: [{name: a b, deployments: []}]\n", "1:17: 'models.0.name': must be 1 to"),
    "name twice": (
        ONE + "}\n  - name: a\n    deployments: [{provider: openai, model: m, api_key: k}]\n",
        "5:11: the model 'a' stands twice; put all deployments under one",
    ),
    "star inside": (
        "models: [{name: 'a*b', deployments: [{provider: openai, model: m, api_key: k}]}]\n",
        "1:17: a wildcard '*' may only stand at the end",
    ),
    "wildcard group, one model": (
        "models: [{name: 'a/*', deployments: [{provider: openai, model: m, api_key: k}]}]\n",
        "1:64: a wildcard model needs a wildcard group and the other way round",
    ),
    "unknown provider": (
        "models: [{name: a, deployments: [{provider: antropic, model: m}]}]\n",
        "1:45: unknown provider 'antropic'; did you mean 'anthropic'?",
    ),
    "no api_key": (
        "models: [{name: a, deployments: [{provider: openai, model: m}]}]\n",
        '1:45: provider openai needs api_key; add api_key: "${OPENAI_API_KEY}"',
    ),
    "no base_url": (
        "models: [{name: a, deployments: [{provider: openai_compatible, model: m}]}]\n",
        "1:45: provider openai_compatible needs base_url; add it",
    ),
    "credential in base_url": (ONE + ", base_url: 'https://u:p@h'}\n", "4:60: 'models.0.deployments.0.base_url': must"),
    "base_url of a file": (ONE + ", base_url: 'file:///etc'}\n", "base_url': must be an http(s) URL without query"),
    "base_url with a query": (ONE + ", base_url: 'https://h/?x=1'}\n", "must be an http(s) URL without query"),
    "base_url with a bad port": (ONE + ", base_url: 'https://h:99999'}\n", "must be an http(s) URL without query"),
    "base_url with a newline": (ONE + ', base_url: "https://h/a\\r\\nb"}\n', "deployments.0.base_url': holds a"),
    "plain http to the world": (
        ONE + ", base_url: 'http://api.example.com'}\n",
        "4:60: plain http would show the credential to the network; use https, or allow_plain_http: true",
    ),
    "key of another provider": (ONE + ", region: eu}\n", "4:58: provider openai does not use region; remove it"),
    "header of the transport": (ONE + ", headers: {Host: x}}\n", "4:60: 'models.0.deployments.0.headers.Host': this"),
    "header that smuggles": (ONE + ', headers: {X-A: "a\\r\\nb"}}\n', "headers.X-A': holds a control"),
    "params JSON cannot say": (ONE + ", params: {temperature: .nan}}\n", "params': holds a number JSON does not have"),
    "dangling fallback": (
        ONE + "}\nrouting: {fallbacks: {b: [a]}}\n",
        "fallbacks name the model 'b', which does not exist; add it under models, or remove it here",
    ),
    "dangling fallback target": (
        ONE + "}\nrouting:\n  fallbacks:\n    a:\n      - aa\n",
        "8:9: fallbacks name the model 'aa', which does not exist; did you mean 'a'?",
    ),
    "fallback to itself": (ONE + "}\nrouting: {fallbacks: {a: [a]}}\n", "5:27: 'a' falls back to itself; remove it"),
    "dangling alias": (ONE + "}\nrouting: {aliases: {x: b}}\n", "5:24: aliases name the model 'b', which"),
    "alias of its own name": (ONE + "}\nrouting: {aliases: {a: a}}\n", "5:24: 'a' is a model and an alias; rename one"),
    "variable not set": (
        'auth: {master_key: "${NOPE}"}\n',
        "1:20: the environment variable NOPE is not set; set it, or write ${NOPE:-default}",
    ),
    "secret file missing": (
        'auth: {master_key: "${file:/no/such}"}\n',
        "1:20: cannot read the file /no/such (No such file or directory); mount it, or correct the path",
    ),
    "bad reference": ('auth: {master_key: "${1x}"}\n', "1:20: '${' begins ${NAME}, ${NAME:-default} or ${file:/path}"),
    "open reference": ('auth: {master_key: "${X"}\n', "1:20: '${' begins ${NAME}, ${NAME:-default} or ${file:/path}"),
    "nested reference": ('auth: {master_key: "${A:-${B}}"}\n', "1:20: a ${…} inside another is not read"),
    "unquoted reference": ("auth: {master_key: ${NOPE}}\n", "inside {…} and […] a ${NAME} must stand in quotes"),
    "a tab": ("server:\n\tport: 1\n", "2:1: not valid YAML: a tab; indent with spaces"),
    "unclosed": ("server: {port: 1\n", "not valid YAML (expected"),
    "a list at the top": ("- a\n", "1:1: must be a mapping such as 'server: {port: 4000}'"),
    "an alias of itself": ("server: &a\n  host: *a\n", "1:9: 'server.host': must be text; quote it"),
    "not text": ("a: \x00\n", "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_place_and_fix(tmp_path: Path, case: str) -> None:
    text, expected = BAD[case]
    faults = faults_of(tmp_path, text)
    assert faults, "accepted"
    assert all(fault.startswith("sidecar.yaml:") for fault in faults)
    want = f"sidecar.yaml:{expected}" if expected[0].isdigit() else expected
    assert any((f.startswith(want) if want != expected else want in f) for f in faults), "\n".join(faults)


def test_one_fault_gives_one_line(tmp_path: Path) -> None:
    many = {case: faults for case in BAD if len(faults := faults_of(tmp_path, BAD[case][0])) > 1}
    # These texts have two faults.
    assert set(many) <= {"name with a space"}, many


def test_all_faults_of_all_kinds_come_at_once_in_the_files_order(tmp_path: Path) -> None:
    text = """\
server: {prot: 1, port: x}
auth: {master_key: "${NOPE}"}
routing:
  retries: 99
  fallbacks: {b: [c]}
store: {redis_url: x}
models:
  - name: b
    deployments:
      - {provider: opnai, model: m}
      - {provider: openai, model: m, api_key: "${file:/no}", weight: -1}
log: {level: info, level: debug}
"""
    faults = faults_of(tmp_path, text, {"SIDECAR_STORE__REDIS_URI": "x"})
    places = [fault.split(": ")[0].removeprefix("sidecar.yaml:") for fault in faults]
    assert places == ["environment", "1:10", "1:25", "2:20", "4:12", "6:20", "10:20", "11:47", "11:70", "12:20"]


def test_a_value_that_could_not_be_read_makes_no_second_fault(tmp_path: Path) -> None:
    text = 'models: [{name: "${N}", deployments: [{provider: "${P}", model: m}]}]\nrouting: {aliases: {x: claude}}\n'
    assert len(faults_of(tmp_path, text)) == 2


def test_a_missing_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read .*give the path"):
        load_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2:4: not UTF-8"):
        load_config(tmp_path / "latin.yaml", {})


def test_aliases_that_multiply_are_refused_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert any("too large" in fault for fault in faults_of(tmp_path, "\n".join(lines)))
