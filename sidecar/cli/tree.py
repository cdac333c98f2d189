"""`sidecar users|teams|organizations|customers|budgets|tags|models|audit`, through the admin API of a running gateway.

One `Subject` per kind says what differs. Neighbours: `options.py` (fields as options), `api.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from sidecar.cli.api import Api, cell, print_done, print_fields, print_json, print_table
from sidecar.cli.options import POLICY, SHARED_BUDGET, Argument, Field, add_command

ROLES = "proxy_admin, proxy_admin_viewer, internal_user or internal_user_viewer"


@dataclass(frozen=True, slots=True)
class Subject:
    """`id_field` names one in bodies, `info_field` in a query, `delete_field` those to delete (a list if
    `deletes_many`). `block_field`: as `delete_field` for `…/block`; without it blocking is an update."""

    noun: str
    plural: str
    path: str
    says: str
    id_field: str
    delete_field: str
    columns: Sequence[str]
    own: Sequence[Field] = ()
    filters: Sequence[Field] = ()
    info_field: str | None = None
    deletes_many: bool = True
    block_field: str | None = None
    blocks_many: bool = False
    can_block: bool = True
    needs_id: bool = False


_LIMITS = ("max_budget", "rpm_limit", "tpm_limit", "blocked")
SUBJECTS = (
    Subject(
        "user", "users", "/user", "Users: who keys and tokens call as.", "user_id", "user_ids",
        ("user_id", "user_alias", "user_email", "user_role", "models", *_LIMITS),
        (
            Field("user_alias", "text", "a name for people", "alias"),
            Field("user_email", "text", "an address", "email"),
            Field("user_role", "text", ROLES, "role"),
        ),
        (Field("user_email", "text", "only with this address", "email"), Field("role", "text", "only with this role")),
    ),
    Subject(
        "team", "teams", "/team", "Teams and their members.", "team_id", "team_ids",
        ("team_id", "team_alias", "organization_id", "models", *_LIMITS),
        (
            Field("team_alias", "text", "a name for people", "alias"),
            Field("organization_id", "text", "the organization it is in"),
            Field("model_aliases", "object", "other names of models for its keys, such as '{\"fast\": \"gpt-4o\"}'"),
        ),
        (
            Field("team_alias", "text", "only with this name", "alias"),
            Field("organization_id", "text", "only in this organization"),
        ),
        block_field="team_id",
    ),
    Subject(
        "organization", "organizations", "/organization", "Organizations, which teams are in.", "organization_id",
        "organization_ids", ("organization_id", "organization_alias", "models", *_LIMITS),
        (Field("organization_alias", "text", "a name for people", "alias"),),
        (Field("organization_alias", "text", "only with this name", "alias"),),
    ),
    Subject(
        "customer", "customers", "/customer", "End users: the names requests give as `user`.", "user_id", "user_ids",
        ("user_id", "alias", "models", *_LIMITS),
        (Field("alias", "text", "a name for people"),),
        (Field("alias", "text", "only with this name"), Field("blocked", "flag", "only those blocked, or not")),
        info_field="end_user_id", block_field="user_ids", blocks_many=True, needs_id=True,
    ),
    Subject(
        "budget", "budgets", "/budget", "Limits and budgets that several share.", "budget_id", "id",
        ("budget_id", "models", "max_budget", "soft_budget", "rpm_limit", "tpm_limit", "max_parallel_requests"),
        deletes_many=False, can_block=False,
    ),
    Subject(
        "tag", "tags", "/tag", "Tags: the names requests give in x-sidecar-tags.", "name", "name",
        ("name", "description", "models", *_LIMITS), (Field("description", "text", "what it is for"),),
        deletes_many=False, needs_id=True,
    ),
)  # fmt: skip


def groups() -> dict[str, typer.Typer]:
    """The command groups by name."""
    found = {subject.plural: _group(subject) for subject in SUBJECTS}
    _team_members(found["teams"])
    _organization_members(found["organizations"])
    return found | {"models": _models()}


def _typer(says: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=says)


def _group(s: Subject) -> typer.Typer:
    app = _typer(s.says)
    fields = (*s.own, *POLICY, *(() if s.noun == "budget" else (SHARED_BUDGET,)))
    which = Argument("id", f"the {s.noun}'s {s.id_field}")
    several = Argument("ids", f"their {s.id_field}s", is_many=True)

    def create(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        body = values if args["id"] is None else {s.id_field: args["id"], **values}
        if s.noun == "user":
            body = {"auto_create_key": False, **body}
        _made(api, api.post(f"{s.path}/new", body), s.id_field, as_json)

    def list_(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        _table(api.rows(f"{s.path}/list", s.plural, **_query(values)), s.columns, as_json)

    def info(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        found = api.get(f"{s.path}/info", **{s.info_field or s.id_field: args["id"]})
        print_json(found) if as_json else print_fields(_flat(found))

    def update(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        found = api.post(f"{s.path}/update", {s.id_field: args["id"], **values})
        print_json(found) if as_json else print_done("updated", found)

    def delete(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        wanted: list[Any] = [args["ids"]] if s.deletes_many else args["ids"]
        for one in wanted:
            found = api.post(f"{s.path}/delete", {s.delete_field: one})
            print_json(found) if as_json else print_done("deleted", found)

    create_says = f"Make a {s.noun}." if s.needs_id else f"Make a {s.noun}; its id is printed."
    add_command(
        app, "create", create_says, create, fields=fields, can_set=True,
        arguments=(Argument("id", f"its {s.id_field}", is_optional=not s.needs_id),),
    )  # fmt: skip
    add_command(app, "list", f"All {s.plural}.", list_, fields=s.filters)
    add_command(app, "info", f"One {s.noun}, whole.", info, arguments=(which,))
    add_command(
        app, "update", "Change what is named.", update, arguments=(which,), fields=fields, can_set=True, can_unset=True
    )
    add_command(app, "delete", f"Delete {s.plural} for good. What they spent stays in the ledger.", delete,
                arguments=(several,))  # fmt: skip
    if s.can_block:
        _blocking(app, s, several)
    return app


def _blocking(app: typer.Typer, s: Subject, several: Argument) -> None:
    for action, is_blocked in (("block", True), ("unblock", False)):

        def run(
            api: Api,
            args: dict[str, Any],
            values: dict[str, Any],
            as_json: bool,
            action: str = action,
            is_blocked: bool = is_blocked,
        ) -> None:
            for one in [args["ids"]] if s.blocks_many else args["ids"]:
                if s.block_field is None:
                    found = api.post(f"{s.path}/update", {s.id_field: one, "blocked": is_blocked})
                else:
                    found = api.post(f"{s.path}/{action}", {s.block_field: one})
                print_json(found) if as_json else print_done(f"{action}ed", found)

        says = "Refuse whoever calls as one of them." if is_blocked else "Let them in again."
        add_command(app, action, says, run, arguments=(several,))


_TEAM, _USER = Argument("team", "the team's team_id"), Argument("user", "the user's user_id")


def _team_members(app: typer.Typer) -> None:
    role = Field("role", "text", "admin or user")
    fields = (role, *POLICY, SHARED_BUDGET)

    def add(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        member = {"user_id": args["user"], "role": values.pop("role", "user")}
        found = api.post("/team/member_add", {"team_id": args["team"], "member": member, **values})
        print_json(found) if as_json else print_done("added", found)

    def update(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        found = api.post("/team/member_update", {"team_id": args["team"], "user_id": args["user"], **values})
        print_json(found) if as_json else print_done("updated", found)

    def remove(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        found = api.post("/team/member_delete", {"team_id": args["team"], "user_id": args["user"]})
        print_json(found) if as_json else print_done("removed", found)

    both = (_TEAM, _USER)
    add_command(app, "add-member", "Put a user into a team.", add, arguments=both, fields=fields, can_set=True)
    add_command(app, "update-member", "Change a member's role, limits or budget.", update, arguments=both,
                fields=fields, can_set=True, can_unset=True)  # fmt: skip
    add_command(app, "remove-member", "Take a user out of a team.", remove, arguments=both)


def _organization_members(app: typer.Typer) -> None:
    both = (Argument("organization", "its organization_id"), _USER)
    role = (Field("role", "text", "org_admin, internal_user or internal_user_viewer"),)

    def add(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        member = {"user_id": args["user"], **values}
        found = api.post("/organization/member_add", {"organization_id": args["organization"], "member": member})
        print_json(found) if as_json else print_done("added", found)

    def remove(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        body = {"organization_id": args["organization"], "user_id": args["user"]}
        found = api.post("/organization/member_delete", body)
        print_json(found) if as_json else print_done("removed", found)

    add_command(app, "add-member", "Put a user into an organization.", add, arguments=both, fields=role)
    add_command(app, "remove-member", "Take a user out of an organization.", remove, arguments=both)


_MODEL_COLUMNS = ("model_id", "model_name", "provider", "model", "source")


def _models() -> typer.Typer:
    app = _typer("Models: those of the file, and those made at run time.")

    def list_(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        rows = api.rows("/model/info", "data")
        if as_json:
            print_json(rows)
            return
        shown = [{**row, **(row.get("deployment") or {})} for row in rows]
        _table(shown, _MODEL_COLUMNS, as_json)

    def add(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        more: dict[str, Any] = {name: values.pop(name) for name in ("access_groups", "model_id") if name in values}
        _made(
            api, api.post("/model/new", {"model_name": args["name"], "deployment": values, **more}), "model_id", as_json
        )

    def update(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        more: dict[str, Any] = {name: values.pop(name) for name in ("access_groups", "model_name") if name in values}
        found = api.post("/model/update", {"model_id": args["id"], "deployment": values, **more})
        print_json(found) if as_json else print_done("updated", found)

    def delete(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        found = api.post("/model/delete", {"id": args["id"]})
        print_json(found) if as_json else print_done("deleted", found)

    which = Argument("id", "its model_id, from `models list`")
    fields = (
        Field("provider", "text", "such as openai, anthropic"),
        Field("model", "text", "the provider's name of the model"),
        Field("api_key", "text", "the provider's credential; else --set"),
        Field("base_url", "text", "where the provider is, if not at its usual place"),
        Field("access_groups", "names", "groups that lists of allowed models may name"),
    )
    add_command(app, "list", "Everything that can be called.", list_)
    add_command(app, "add", "Add a deployment to a model; it serves in every process within a moment.", add,
                arguments=(Argument("name", "what clients ask for"),), fields=fields, can_set=True)  # fmt: skip
    add_command(app, "update", "Change a deployment that was added.", update, arguments=(which,),
                fields=(*fields, Field("model_name", "text", "what clients ask for", "name")), can_set=True,
                can_unset=True)  # fmt: skip
    add_command(app, "delete", "Take away a deployment that was added.", delete, arguments=(which,))
    return app


def add_audit(app: typer.Typer) -> None:
    """`sidecar audit`: one command, not a group."""
    filters = (
        Field("kind", "text", "key, user, team, …"),
        Field("subject_id", "text", "whose row was written", "subject"),
        Field("actor", "text", "who wrote"),
        Field("action", "text", "create, update, delete, block, …"),
        Field("limit", "count", "this many at most; else 50"),
    )

    def run(api: Api, args: dict[str, Any], values: dict[str, Any], as_json: bool) -> None:
        limit = values.pop("limit", 50)
        rows = api.rows("/audit", "events", limit=max(1, limit), **values)
        _table(rows, ("at", "actor", "action", "kind", "subject_id"), as_json)

    add_command(app, "audit", "Who changed what, newest first.", run, fields=filters)


def _query(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    names = [
        {"max_budget": "budget", "rpm_limit": "rpm", "tpm_limit": "tpm"}.get(c, c.replace("_", " ")) for c in columns
    ]
    print_table(names, [[cell(row, column) for column in columns] for row in rows])


def _made(api: Api, made: Any, id_field: str, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        typer.echo(str(api.member(made, id_field)))


def _flat(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Answers that hold a row beside what is below it, as one list of fields."""
    flat: dict[str, Any] = {}
    for name, value in answer.items():
        if name.endswith("_info") and isinstance(value, dict):
            flat |= value
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            flat[name] = [_name_of(item) for item in value]
        else:
            flat[name] = value
    return flat


def _name_of(item: Mapping[str, Any]) -> str:
    for name in ("key_name", "user_id", "team_id", "budget_duration"):
        if item.get(name):
            role = item.get("role") or item.get("user_role")
            return f"{item[name]} ({role})" if role else str(item[name])
    return str(next(iter(item.values()), ""))
