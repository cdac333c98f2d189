"""`sidecar keys …`: virtual keys, through the admin API of a running gateway.

Neighbours: `options.py` (fields as options), `api.py`.
"""

from __future__ import annotations

import re
from typing import Any

import typer

from sidecar.cli.api import Api, cell, fail, print_done, print_fields, print_json, print_table
from sidecar.cli.options import POLICY, SHARED_BUDGET, Argument, Field, add_command

keys = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Virtual keys, through the admin API of a running gateway."
)

_FIELDS = (
    Field("key_alias", "text", "a name for people; unique", "alias"),
    *POLICY,
    SHARED_BUDGET,
    Field("duration", "text", "life of the key from now, such as 30d"),
    Field("user_id", "text", "whose key it is"),
    Field("team_id", "text", "which team's"),
    Field("organization_id", "text", "which organization's, if it is no team's"),
    Field("tags", "names", "tags of every request with it, comma-separated"),
    Field("aliases", "object", 'this key\'s names of models, such as \'{"fast": "gpt-4o"}\''),
    Field("rotation_interval", "text", "a new key in its place every so often, such as 90d"),
)
_FILTERS = (
    Field("user_id", "text", "only this user's"),
    Field("team_id", "text", "only this team's"),
    Field("organization_id", "text", "only this organization's"),
    Field("budget_id", "text", "only with this shared budget"),
    Field("blocked", "flag", "only those blocked, or not"),
)
_COLUMNS = {
    "id": "token", "key": "key_name", "alias": "key_alias", "user": "user_id", "team": "team_id", "models": "models",
    "spend": "spend", "budget": "max_budget", "rpm": "rpm_limit", "tpm": "tpm_limit", "blocked": "blocked",
    "expires": "expires",
}  # fmt: skip
_WHICH = Argument("key", "the key (sk-…), its alias, or its id from `keys list`")


def _create(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    made = api.post("/key/generate", _with_rotation(values))
    if as_json:
        print_json(made)
    else:
        typer.echo(api.member(made, "key"))
        typer.echo("This key is not stored and will not be shown again.", err=True)


def _list(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    if "blocked" in values:
        values["blocked"] = str(values["blocked"]).lower()
    rows = api.rows("/key/list", "keys", **values)
    if as_json:
        print_json(rows)
    else:
        print_table(list(_COLUMNS), [[cell(row, column) for column in _COLUMNS.values()] for row in rows])


def _info(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    found = api.get("/key/info", key=_find(api, args["key"]))
    print_json(found) if as_json else print_fields(api.member(found, "info"))


def _update(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    found = api.post("/key/update", {"key": _find(api, args["key"]), **_with_rotation(values)})
    print_json(found) if as_json else print_done("updated", found)


def _regenerate(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    made = api.post("/key/regenerate", {"key": _find(api, args["key"]), **values})
    if as_json:
        print_json(made)
    else:
        print_done(api.member(made, "key"), made)
        typer.echo("This key is not stored and will not be shown again.", err=True)


def _block(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    found = api.post("/key/block", {"key": _find(api, args["key"])})
    print_json(found) if as_json else print_done("blocked", found)


def _unblock(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    found = api.post("/key/unblock", {"key": _find(api, args["key"])})
    print_json(found) if as_json else print_done("unblocked", found)


def _delete(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
    found = api.post("/key/delete", {"keys": [_find(api, args["key"])]})
    print_json(found) if as_json else print_done("deleted", found)


add_command(keys, "create", "Mint a key. It is shown once.", _create, fields=_FIELDS, can_set=True)
add_command(keys, "list", "All keys, masked.", _list, fields=_FILTERS)
add_command(keys, "info", "One key, whole.", _info, arguments=(_WHICH,))
add_command(
    keys, "update", "Change what is named.", _update, arguments=(_WHICH,), fields=_FIELDS, can_set=True, can_unset=True
)
add_command(
    keys, "regenerate", "A new key in the place of this one. It is shown once.", _regenerate, arguments=(_WHICH,),
    fields=(
        Field("grace_period", "text", "how long the old key still works, such as 1d; else it ends now"),
        Field("duration", "text", "life of the new key, such as 30d"),
    ),
)  # fmt: skip
add_command(keys, "block", "Refuse a key from now on.", _block, arguments=(_WHICH,))
add_command(keys, "unblock", "Let a blocked key in again.", _unblock, arguments=(_WHICH,))
add_command(keys, "delete", "Delete a key for good. Its spend stays in the ledger.", _delete, arguments=(_WHICH,))


def _with_rotation(values: dict[str, Any]) -> dict[str, Any]:
    return {"auto_rotate": True, **values} if values.get("rotation_interval") is not None else values


def _find(api: Api, key: str) -> str:
    """What the API takes, from a key, its hash, an alias or the beginning of a hash."""
    if key.startswith("sk-") or re.fullmatch(r"[0-9a-f]{64}", key):
        return key
    found = [row for row in api.rows("/key/list", "keys", key_alias=key) if row.get("key_alias") == key]
    if not found and len(key) >= 6:
        found = [row for row in api.rows("/key/list", "keys") if str(row.get("token", "")).startswith(key)]
    if not found:
        fail(f"no key has the alias or id '{key}'; see `sidecar keys list`")
    if len(found) > 1:
        fail(f"'{key}' is the beginning of {len(found)} ids; write more of it")
    return str(api.member(found[0], "token"))
