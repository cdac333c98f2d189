"""Metrics, error codes and headers: what the code has and what the pages say are the same."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import sidecar
from sidecar import errors
from sidecar.metrics import Metrics
from sidecar.translate.provider_errors import SHAPES
from tests.docs.support import DOCS, code_spans, rows_with

PACKAGE = Path(sidecar.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PRINCIPALS = ("team", "member", "user", "organization", "end_user", "tag")
MADE = {
    "{denied.what}_limit_exceeded": [f"{what}_limit_exceeded" for what in ("requests", "tokens", "concurrency")],
    "upstream_timeout_{phase}": [f"upstream_timeout_{p}" for p in ("connect", "first_byte", "gap", "total")],
    "{principal.kind}_blocked": [f"{kind}_blocked" for kind in PRINCIPALS],
    "{kind}_blocked": [f"{kind}_blocked" for kind in PRINCIPALS],
    "{kind}_not_found": [f"{kind}_not_found" for kind in (*PRINCIPALS, "budget")],
    "{row.kind}_in_use": ["budget_in_use", "organization_in_use"],
}
"""Codes written as f-strings, and what they become. A new one has to be added here."""


@cache
def codes() -> dict[str, set[int]]:
    """Every code in the source with the statuses it is raised with (none where the source does not tell)."""
    found: dict[str, set[int]] = {}

    def add(node: ast.expr, status: int | None, where: str) -> None:
        names: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        elif isinstance(node, ast.JoinedStr):
            template = ast.unparse(node)[2:-1]
            assert template in MADE, f"{where}: the code f'{template}' is not in MADE"
            names = MADE[template]
        elif isinstance(node, ast.IfExp):
            add(node.body, status, where)
            add(node.orelse, status, where)
        for name in names:
            found.setdefault(name, set()).update({status} if status else ())

    for path in SOURCES:
        text = path.read_text("utf-8")
        for code in re.findall(r'"code":"([a-z_]+)"', text):
            found.setdefault(code, set())
        for node in ast.walk(ast.parse(text)):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                kind = getattr(errors, getattr(node.func, "id", getattr(node.func, "attr", "")), None)
                is_error = isinstance(kind, type) and issubclass(kind, errors.SidecarError)
                for keyword in node.keywords:
                    if keyword.arg == "code" and (is_error or isinstance(keyword.value, (ast.Constant, ast.JoinedStr))):
                        add(keyword.value, kind.status if is_error else None, where)
            elif isinstance(node, ast.FunctionDef):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                defaults = [*[None] * (len(node.args.args) - len(node.args.defaults)), *node.args.defaults]
                for argument, default in zip(arguments, [*defaults, *node.args.kw_defaults], strict=True):
                    if argument.arg == "code" and default is not None:
                        add(default, None, where)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                targets = [getattr(t, "id", "") for t in node.targets[0].elts]
                if "code" in targets and isinstance(node.value, ast.Tuple):
                    add(node.value.elts[targets.index("code")], None, where)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.SidecarError):
            found.setdefault(kind.code, set()).add(kind.status)
    for shape in SHAPES.values():
        found.setdefault(shape.code, set()).add(shape.status)
    return found


def documented_codes() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows_with((DOCS / "errors.md").read_text("utf-8"), "code"):
        for code in code_spans(row["code"]):
            found.setdefault(code, []).append(row)
    return found


def test_every_error_code_is_documented() -> None:
    assert set(codes()) - set(documented_codes()) == set()
    assert {"bad_request", "key_blocked", "requests_limit_exceeded", "record_not_written"} <= set(codes())


def test_no_documented_code_is_unknown_to_the_source() -> None:
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    gone = [code for code in documented_codes() if code not in codes() and f'"{code}"' not in text]
    assert gone == []


@pytest.mark.parametrize("code", sorted(codes()))
def test_a_codes_status_is_the_one_on_the_page(code: str) -> None:
    for row in documented_codes().get(code, []):
        if row.get("status") and codes()[code]:
            assert row["status"] in {str(status) for status in codes()[code]}


def test_refused_tokens_are_documented_with_their_codes() -> None:
    text = (DOCS / "oidc.md").read_text("utf-8")
    for code in codes():
        if "token" in code and not code.startswith(("tokens_", "max_")):
            assert f"`{code}`" in text


METRICS = {row["metric"].strip("`"): row for row in rows_with((DOCS / "metrics.md").read_text("utf-8"), "metric")}


def test_every_metric_is_documented_with_type_and_labels() -> None:
    found = {}
    registry = Metrics().registry
    for collector in registry._collector_to_names:
        family = next(iter(collector.collect()))
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)  # type: ignore[attr-defined]
        found[name] = (family.type, labels)
    assert {name: (row["type"], row["labels"]) for name, row in METRICS.items()} == found
    assert len(found) >= 6


def test_every_label_value_of_ours_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text("utf-8")
    outcomes = {"ok", "refused", "provider_error", "incomplete", "client_left", "gateway_error"}
    row = next(row for row in rows_with(text, "label", "values") if row["label"] == "`outcome`")
    assert set(code_spans(row["values"])) == outcomes
    source = "\n".join(path.read_text("utf-8") for path in SOURCES)
    assigned = re.findall(r'exchange\.outcome = "(\w+)"(?: if .*? else "(\w+)")?', source)
    assert {value for pair in assigned for value in pair if value} <= outcomes


def test_every_access_log_field_is_documented() -> None:
    function = re.search(r"(?s)def _line\(.*", (PACKAGE / "middleware" / "observe.py").read_text("utf-8"))
    assert function is not None
    fields = re.findall(r'^        "(\w+)":', function[0], re.MULTILINE)
    assert len(fields) > 8
    named = code_spans((DOCS / "metrics.md").read_text("utf-8"))
    assert set(fields) <= set(named)


def test_every_header_is_documented() -> None:
    used = set()
    for path in SOURCES:
        names = re.findall(r"x-(?:sidecar|ratelimit)-[a-z-]*[a-z]", path.read_text("utf-8"))
        used |= set(names)
    assert {"x-sidecar-cost-usd", "x-ratelimit-limit-requests"} <= used
    rows = rows_with((DOCS / "middlewares.md").read_text("utf-8"), "header", "meaning")
    named = {re.split(r"[:\s]", span)[0] for row in rows for span in code_spans(row["header"])}
    assert used - named == set()
    ours = {name for name in named if name.startswith(("x-sidecar-", "x-ratelimit-"))}
    assert ours - used == set()
