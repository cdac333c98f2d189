"""LiteLLM's proxy configuration → `sidecar.yaml` and a report with one line per value of the source.

In phases, because a name can be judged only when the models are: the deployments and settings, then what is settled
over all of them, then names, then the variables. Nothing here does I/O but reading the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.config.read import ConfigError, Fault
from sidecar.importing import table_models, table_settings
from sidecar.importing.draft import Deployment, Draft, Superseded, named, place
from sidecar.importing.names import write_out_defaults
from sidecar.importing.report import Line, Refuse, Report, Verdict, dotted
from sidecar.importing.settle import settle_deployments
from sidecar.importing.shared_store import settle_redis
from sidecar.importing.source import Node, Source, read_source
from sidecar.importing.write import render

_MAPPINGS = ("litellm_settings", "router_settings", "general_settings", "environment_variables")
_EMPTY = Verdict("taken", "", "empty; there is nothing to take")
_UNKNOWN = "this import does not know the key; look up what it did there"


@dataclass(frozen=True, slots=True)
class Imported:
    """`text` is the new file; `placeholders` an environment with which it can be checked; `master_key` what stands in
    the source for it: a key, or `os.environ/NAME`."""

    text: str
    report: Report
    placeholders: dict[str, str]
    master_key: str | None = field(default=None, repr=False)


def import_litellm(path: Path) -> Imported:
    """Raises ConfigError with all faults if the source cannot be read."""
    source = read_source(path)
    faults = list(_wrong_forms(source))
    if faults:
        raise ConfigError(faults)
    draft = Draft(_occupied(source))
    leaves = source.leaves()
    _credentials(draft, source)
    _models_and_settings(draft, source, leaves)
    report = Report(lines=_lines(draft, source, leaves), notes=draft.notes)
    text = render(draft, report.lines, str(path))
    draft.forget_unread(text)
    report.variables = draft.variables
    report.notes += _notes(draft, source)
    master = source.tree.get("general_settings", "master_key")
    return Imported(text, report, draft.placeholders, master.text if master is not None else None)


def _wrong_forms(source: Source) -> Iterator[Fault]:
    top = source.tree
    for name in _MAPPINGS:
        node = top.get(name)
        if node is not None and node.value is not None and not isinstance(node.value, dict):
            yield node.fault(f"'{name}' must be a mapping")
    for name in ("model_list", "credential_list"):
        node = top.get(name)
        if node is None or node.value is None:
            continue
        if not isinstance(node.value, list):
            yield node.fault(f"'{name}' must be a list: lines that begin with '- '")
            continue
        for entry in node.value:
            if not isinstance(entry.value, dict):
                yield entry.fault(f"an entry of '{name}' must be a mapping")
            elif name == "model_list":
                yield from _wrong_entry(entry)


def _wrong_entry(entry: Node) -> Iterator[Fault]:
    name, params, model = entry.get("model_name"), entry.get("litellm_params"), entry.get("litellm_params", "model")
    if name is None or not _is_text(name):
        yield (name or entry).fault("an entry of 'model_list' needs a model_name; add it as text")
    if params is None or not isinstance(params.value, dict):
        yield (params or entry).fault("an entry of 'model_list' needs litellm_params, a mapping")
    elif model is None or not _is_text(model):
        yield (model or params).fault("litellm_params needs a model, such as openai/gpt-4o; add it as text")


def _is_text(node: Node) -> bool:
    return isinstance(node.value, (str, int, float)) and not isinstance(node.value, bool) and bool(node.text.strip())


def _occupied(source: Source) -> set[str]:
    """Variables the source names: they hold what they hold."""
    variables = source.tree.get("environment_variables")
    names = set(variables.value) if variables is not None and variables.value else set()
    for leaf in source.leaves():
        try:
            names |= {leaf.env} - {None}
        except ValueError:
            continue
    return {str(name) for name in names}


def _credentials(draft: Draft, source: Source) -> None:
    node = source.tree.get("credential_list")
    for entry in (node.value or []) if node is not None else []:
        name, values = entry.get("credential_name"), entry.get("credential_values")
        if name is not None and values is not None and isinstance(values.value, dict):
            draft.credentials.setdefault(name.text, [leaf for leaf in values.leaves() if leaf is not values])


def _models_and_settings(draft: Draft, source: Source, leaves: list[Node]) -> None:
    node = source.tree.get("model_list")
    entries: list[Node] = (node.value or []) if node is not None else []
    deployments = [table_models.prepare(draft, entry) for entry in entries]
    inside = {leaf for entry in entries for leaf in entry.leaves()}
    rest = [leaf for leaf in leaves if leaf not in inside]
    _run(draft, rest, 0, 0)
    for deployment in deployments:
        _take_entry(draft, deployment)
    _run(draft, rest, 1, 1)
    settle_deployments(draft)
    settle_redis(draft)
    _run(draft, rest, 2, 9)
    write_out_defaults(draft)


def _take_entry(draft: Draft, deployment: Deployment) -> None:
    found = [(table_models.TABLE.find(leaf.path[2:]), leaf) for leaf in deployment.node.leaves()]
    for row, leaf in sorted(found, key=lambda item: item[0].rank if item[0] is not None else 9):
        if leaf.value in (None, {}, []):
            draft.verdicts[leaf] = _EMPTY
            continue
        try:
            if row is None:
                raise Refuse(_UNKNOWN)
            draft.verdicts[leaf] = row.handle(draft, deployment, leaf)
        except Superseded as error:
            draft.verdicts[leaf] = Verdict("changed", "", str(error))
        except (Refuse, ValueError) as error:
            draft.verdicts[leaf] = Verdict("no equivalent", "", str(error))


def _run(draft: Draft, leaves: list[Node], first: int, last: int) -> None:
    found = [(table_settings.TABLE.find(leaf.path), leaf) for leaf in leaves]
    due = [(row, leaf) for row, leaf in found if first <= (row.phase if row is not None else 1) <= last]
    for row, leaf in sorted(due, key=lambda item: (item[0].phase, item[0].rank) if item[0] is not None else (1, 9)):
        if leaf.value in (None, {}, []):
            draft.verdicts[leaf] = _EMPTY
            continue
        try:
            if row is None:
                raise Refuse(_UNKNOWN)
            draft.verdicts[leaf] = row.handle(draft, leaf)
        except Superseded as error:
            draft.verdicts[leaf] = Verdict("changed", "", str(error))
        except (Refuse, ValueError) as error:
            draft.verdicts[leaf] = Verdict("no equivalent", "", str(error))


def _lines(draft: Draft, source: Source, leaves: list[Node]) -> list[Line]:
    verdicts = [(leaf, draft.verdicts[leaf]) for leaf in leaves]
    verdicts += [(leaf, Verdict("taken", "", "the file was read")) for leaf in source.includes]
    for leaf, by in source.replaced:
        text = f"not used; {place(by)} takes its place" if leaf.value else "empty; there is nothing to take"
        verdicts.append((leaf, Verdict("changed" if leaf.value else "taken", "", text)))
    return sorted(
        Line(leaf.file, leaf.line, dotted(leaf.path), verdict.status, verdict.to, verdict.text)
        for leaf, verdict in verdicts
    )


def _notes(draft: Draft, source: Source) -> list[str]:
    notes = []
    if "master_key" not in draft.sections.get("auth", {}):
        notes.append("the source has no master_key; one is made at the first start, and requests need a key")
    if "host" not in draft.sections.get("server", {}):
        notes.append("we listen on 127.0.0.1:4000 unless server.host says otherwise (0.0.0.0: everywhere)")
    if not draft.groups:
        notes.append("no model was taken")
    elif any(len({d.model for d in members}) > 1 for members in draft.groups.values()):
        several = [name for name, members in draft.groups.items() if len({d.model for d in members}) > 1]
        notes.append(f"one name serves several models: {', '.join(named(name) for name in several)}")
    return notes
