"""The written `sidecar.yaml`: sections in the order of the configuration, each deployment with the place it came from,
what could not be taken as comments."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from sidecar.config.models import Config
from sidecar.importing.draft import Deployment, Draft, place
from sidecar.importing.report import Line, shown
from sidecar.importing.settle import COMMENTED_OUT

_WIDTH = 110


def render(draft: Draft, lines: Iterable[Line], source: str) -> str:
    parts = [
        f"# Made by `sidecar import litellm` from {shown(source)}. `sidecar config check` tells whether it is whole.",
        "",
    ]
    for name in Config.model_fields:
        if name == "models":
            parts += _models(draft)
        elif draft.sections.get(name):
            parts += [_section(draft, name), ""]
    missing = [x for x in lines if x.status == "no equivalent" and not x.text.startswith(COMMENTED_OUT)]
    if missing:
        parts.append("# Without an equivalent:")
        parts += [_wrapped(f"{shown(x.file)}:{x.line}: {x.key}: {x.text}") for x in missing]
    return "\n".join(parts).rstrip("\n") + "\n"


def _section(draft: Draft, name: str) -> str:
    values = CommentedMap()
    for key, value in draft.sections[name].items():
        values[key] = _plain(value)
        node = draft.placed.get(f"{name}.{key}")
        if node is not None:
            values.yaml_add_eol_comment(f"# {place(node)}", key, column=0)
    return _dump({name: values})


def _models(draft: Draft) -> list[str]:
    parts: list[str] = []
    groups = draft.groups
    if groups:
        models = CommentedSeq()
        for group, members in groups.items():
            deployments = CommentedSeq([_plain(d.values) for d in members])
            for i, deployment in enumerate(members):
                deployments.yaml_set_comment_before_after_key(i, before=place(deployment.node), indent=6)
            model = CommentedMap(name=_plain(group))
            access_groups = list(dict.fromkeys(name for d in members for name in d.access_groups))
            if access_groups:
                model["access_groups"] = _plain(access_groups)
            model["deployments"] = deployments
            models.append(model)
        parts += [_dump({"models": models}), ""]
    for deployment in draft.deployments:
        if deployment.out is not None:
            parts += [_commented_out(deployment), ""]
    return parts


def _commented_out(deployment: Deployment) -> str:
    one = {"name": shown(deployment.group), "deployments": [deployment.values]}
    text = _dump([_plain(one)])
    lines = [shown(line, 400) for line in text.splitlines()]
    head = _wrapped(f"Not taken, {place(deployment.node)}: {deployment.out}")
    return "\n".join([head, *(f"#   {line}" for line in lines)])


def _wrapped(text: str) -> str:
    """A comment of several lines."""
    found = textwrap.wrap(text, _WIDTH, break_on_hyphens=False) or [""]
    return "\n".join(f"# {line}" if i == 0 else f"#   {line}" for i, line in enumerate(found))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return CommentedMap((str(k), _plain(v)) for k, v in value.items())
    if isinstance(value, list):
        return CommentedSeq(_plain(v) for v in value)
    if isinstance(value, str) and "$" in value:
        return DoubleQuotedScalarString(value)
    return value


def _dump(value: Any) -> str:
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().rstrip("\n")
