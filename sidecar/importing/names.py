"""Handlers for names that must exist: fallbacks and aliases. They run when it is settled which models were taken."""

from __future__ import annotations

from sidecar.importing.draft import Draft, Superseded, named
from sidecar.importing.report import Refuse, Verdict
from sidecar.importing.source import Node

_NAMES = ("fallbacks", "model_group_alias")


def fallback(draft: Draft, node: Node) -> Verdict:
    """`fallbacks[0].gpt-4[0]`: one target. Of several lists for one name the first one counts, as there."""
    at = node.path.index("fallbacks")
    keys = [i for i, part in enumerate(node.path) if i > at and isinstance(part, str)]
    if not keys:
        raise Refuse("write the fallbacks of a model as {model: [other]}")
    name, target = str(node.path[keys[0]]), _target(node)
    if name == "*":
        return default_fallback(draft, node)
    if not exists(draft, name):
        raise Refuse(f"the model '{named(name)}' was not taken")
    _check_target(draft, name, target)
    where = (node.file, node.path[: keys[0]])
    if draft.fallback_places.setdefault(name, where) != where:
        raise Superseded("not used; an earlier list of this model counts")
    targets = draft.sections.setdefault("routing", {}).setdefault("fallbacks", {}).setdefault(name, [])
    if target in targets:
        return Verdict("changed", "routing.fallbacks", "stands there already")
    targets.append(target)
    return Verdict("taken", "routing.fallbacks")


def default_fallback(draft: Draft, node: Node) -> Verdict:
    target = _target(node)
    if not exists(draft, target):
        raise Refuse(f"the model '{named(target)}' was not taken")
    draft.default_fallbacks.append((target, node))
    return Verdict("changed", "routing.fallbacks", "written out for each model that has none of its own")


def write_out_defaults(draft: Draft) -> None:
    """A model named as default falls back to the others only."""
    if not draft.default_fallbacks:
        return
    fallbacks = draft.sections.setdefault("routing", {}).setdefault("fallbacks", {})
    for name in draft.groups:
        targets = list(dict.fromkeys(target for target, _ in draft.default_fallbacks if target != name))
        if name not in fallbacks and targets:
            fallbacks[name] = targets
    if not fallbacks:
        del draft.sections["routing"]["fallbacks"]


def alias(draft: Draft, node: Node) -> Verdict:
    at = node.path.index("model_group_alias")
    name, target = str(node.path[at + 1]), _target(node)
    if name in draft.groups:
        raise Refuse("a model of this name was taken too; rename one of them")
    if not _fits(name):
        raise Refuse("a name is 1 to 256 printable ASCII characters without spaces here")
    if not exists(draft, target, with_aliases=False):
        raise Refuse(f"the model '{named(target)}' was not taken")
    aliases = draft.sections.setdefault("routing", {}).setdefault("aliases", {})
    if name in aliases:
        raise Superseded("not used; an earlier line sets this alias")
    aliases[name] = target
    return Verdict("taken", "routing.aliases")


def hidden(draft: Draft, node: Node) -> Verdict:
    if draft.truth(node) is False:
        return Verdict("taken", "", "aliases are listed")
    raise Refuse("not yet: GET /v1/models lists aliases too")


def exists(draft: Draft, name: str, *, with_aliases: bool = True) -> bool:
    known = set(draft.groups)
    if with_aliases:
        known |= set(draft.sections.get("routing", {}).get("aliases", {}))
    return any(name == k or (k.endswith("*") and name.startswith(k[:-1]) and name != k[:-1]) for k in known)


def _check_target(draft: Draft, name: str, target: str) -> None:
    if target == name:
        raise Refuse("it names itself; there is nothing to fall back to")
    if not exists(draft, target):
        raise Refuse(f"the model '{named(target)}' was not taken")


def _target(node: Node) -> str:
    if not isinstance(node.value, str) or not _fits(node.text) or "${" in node.text:
        raise Refuse("must be the name of a model")
    return node.text


def _fits(name: str) -> bool:
    return 1 <= len(name) <= 256 and all(33 <= ord(c) <= 126 for c in name)
