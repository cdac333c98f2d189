"""Their tables → our rows, one method a table. `policy.py` has what they share; nothing is written here.

Rule: no key may call a model it could not call there; where that cannot be said here, it is refused. Other limits
without an equivalent are left out and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

import msgspec

from sidecar.identity.row import ROLES, KeyRow, PrincipalRow, member_id
from sidecar.identity.tokens import hash_key, is_hash
from sidecar.identity.tree import ORGANIZATION_MEMBER
from sidecar.importing.database.book import Book, Taken
from sidecar.importing.database.policy import WITHOUT, Common, common
from sidecar.importing.database.source import PREFIX, Row, Source
from sidecar.importing.database.values import instant, mapping, nano, narrowed, plain, texts
from sidecar.limits.windows import parse_duration
from sidecar.types import NO_MODELS

KEYS = PREFIX + "VerificationToken"
READ = frozenset(
    PREFIX + name
    for name in (
        "BudgetTable", "OrganizationTable", "OrganizationMembership", "TeamTable", "TeamMembership", "ModelTable",
        "UserTable", "EndUserTable", "TagTable", "VerificationToken", "DeprecatedVerificationToken",
        "BudgetWindowSpend",
    )
)  # fmt: skip
DASHBOARD = "litellm-dashboard"
WHOLE_PROXY = "litellm-proxy-budget"
"""The user under whose name the spend of the whole proxy stands."""
_CALLS = frozenset({"llm_api_routes", "openai_routes", "/chat/completions", "/v1/chat/completions", "/*", "/v1/*", "*"})


@dataclass(slots=True)
class Spent:
    """Nano-dollars of one scope: since the last reset, of each further window, and ever."""

    kind: str
    subject_id: str
    nano: int
    reset_at: float | None = None
    total: int | None = None
    alias: str | None = None
    by_window: tuple[int | None, ...] = ()
    """In the order of its `budget_windows`; `None` is not known."""


@dataclass(slots=True)
class Gathered:
    principals: dict[tuple[str, str], PrincipalRow] = field(default_factory=dict)
    keys: dict[str, KeyRow] = field(default_factory=dict)
    spent: list[Spent] = field(default_factory=list)


class Reader:
    def __init__(self, source: Source, book: Book, *, zone: tzinfo, now: float, masters: frozenset[str]) -> None:
        """`masters`: hashes of master keys, which are never a virtual key."""
        self._source = source
        self._book = book
        self._zone = zone
        self._now = now
        self._masters = masters
        self.found = Gathered()
        self._personal_models: dict[str, tuple[str, ...]] = {}
        self._team_users: set[str] = set()
        self._personal_users: set[str] = set()
        self._aliases: dict[str, Any] = {}
        self._key_aliases: set[str] = set()
        self._members_budget: dict[str, str] = {}
        self._projects: dict[str, tuple[bool, tuple[str, ...]]] = {}
        self._reset_of_budget: dict[str, float] = {}
        self._window_spend: dict[tuple[str, str], dict[str, int]] = {}

    async def read(self) -> Gathered:
        async for row in self._source.rows(KEYS, "token"):
            if row.get("user_id") and row.get("team_id") != DASHBOARD:
                (self._team_users if row.get("team_id") else self._personal_users).add(str(row["user_id"]))
        async for row in self._source.rows(PREFIX + "ProjectTable", "project_id"):
            self._projects[str(row["project_id"])] = bool(row.get("blocked")), texts(row.get("models"))
        for table, order, take in self._tables():
            async for row in self._source.rows(PREFIX + table, order):
                take(row)
        return self.found

    def _tables(self) -> tuple[tuple[str, str, Callable[[Row], None]], ...]:
        return (
            ("BudgetWindowSpend", "entity_id", self._window),
            ("BudgetTable", "budget_id", self._budget),
            ("OrganizationTable", "organization_id", self._organization),
            ("OrganizationMembership", "user_id", self._organization_member),
            ("ModelTable", "id", self._model_aliases),
            ("TeamTable", "team_id", self._team),
            ("TeamMembership", "user_id", self._membership),
            ("UserTable", "user_id", self._user),
            ("EndUserTable", "user_id", self._end_user),
            ("TagTable", "tag_name", self._tag),
            ("VerificationToken", "token", self._key),
            ("DeprecatedVerificationToken", "token", self._old_key),
        )

    # Everybody above keys

    def _budget(self, row: Row) -> None:
        taken = self._taken("BudgetTable", row, row["budget_id"])
        name = str(taken.take("budget_id", "budget"))
        found = common(taken, self._zone, self._now, models="allowed_models")
        if found.reset_at is not None:
            self._reset_of_budget[name] = found.reset_at
        self._add("budget", name, found, budget_id=None)
        taken.finish(WITHOUT)

    def _organization(self, row: Row) -> None:
        taken = self._taken("OrganizationTable", row, row["organization_id"])
        name = str(taken.take("organization_id", "organization"))
        found = common(taken, self._zone, self._now)
        self._add("organization", name, found, alias=taken.take("organization_alias", "alias"))
        taken.finish(WITHOUT)

    def _organization_member(self, row: Row) -> None:
        name = member_id(str(row["organization_id"]), str(row["user_id"]))
        taken = self._taken("OrganizationMembership", row, f"{row['organization_id']}/{row['user_id']}")
        taken.take("organization_id", "organization_member")
        taken.take("user_id", "organization_member")
        role = taken.take("user_role", "role")
        made_at = instant(taken.get("created_at")) or self._now
        taken.get("updated_at")
        taken.nothing("spend", "a member of an organization has no budget; members of teams do")
        taken.nothing("budget_id", "a member of an organization has no budget; members of teams do")
        self.found.principals[ORGANIZATION_MEMBER, name] = PrincipalRow(
            kind=ORGANIZATION_MEMBER, principal_id=name, organization_id=str(row["organization_id"]),
            user_id=str(row["user_id"]), role="org_admin" if role == "org_admin" else "internal_user",
            created_at=made_at, updated_at=made_at,
        )  # fmt: skip
        taken.finish(WITHOUT)

    def _model_aliases(self, row: Row) -> None:
        self._aliases[str(row["id"])] = _aliases(row.get("aliases", row.get("model_aliases")))

    def _team(self, row: Row) -> None:
        taken = self._taken("TeamTable", row, row.get("team_alias") or row["team_id"])
        name = str(taken.take("team_id", "team"))
        found = common(taken, self._zone, self._now)
        organization = taken.take("organization_id")
        aliases = self._aliases.get(str(taken.get("model_id")), {})
        if aliases:
            taken.changed("model_id", "model_aliases", "followed once; what a name stands for has to be allowed")
        self._add(
            "team", name, found, alias=taken.take("team_alias", "alias"), organization_id=organization or None,
            model_aliases=aliases,
        )  # fmt: skip
        if found.members_budget is not None:
            self._members_budget[name] = found.members_budget
        roles: dict[str, str] = {}
        listed = plain(taken.get("members_with_roles"))
        for one in listed if isinstance(listed, list) else []:
            member = mapping(one)
            if member.get("user_id"):
                roles[str(member["user_id"])] = "admin" if member.get("role") == "admin" else "user"
                taken.part("members_with_roles", "taken", "member", "")
            elif member:
                why = "a member known by e-mail alone; add the user when it has an id"
                taken.part("members_with_roles", "no equivalent", "", why)
        for column, role in (("admins", "admin"), ("members", "user")):
            for user in texts(taken.take(column, "member")):
                roles.setdefault(user, role)
        for user, role in roles.items():
            self._member(name, user, role=role, made_at=found.fields["created_at"])
        taken.nothing("team_member_permissions", "what a member may do follows from its role")
        taken.nothing("default_team_member_models", "give a member a budget with models")
        taken.nothing("allow_team_guardrail_config", "there are no guardrails")
        taken.finish(WITHOUT)

    def _member(self, team: str, user: str, *, made_at: float, **fields: Any) -> None:
        name = member_id(team, user)
        row = PrincipalRow(
            kind="member", principal_id=name, team_id=team, user_id=user, created_at=made_at, updated_at=made_at,
            **{"role": "user", "budget_id": self._members_budget.get(team), **fields},
        )  # fmt: skip
        self.found.principals["member", name] = row

    def _membership(self, row: Row) -> None:
        team, user = str(row["team_id"]), str(row["user_id"])
        taken = self._taken("TeamMembership", row, f"{team}/{user}")
        taken.take("team_id", "member")
        taken.take("user_id", "member")
        before = self.found.principals.get(("member", member_id(team, user)))
        budget = taken.take("budget_id") or self._members_budget.get(team)
        self._member(
            team, user, made_at=before.created_at if before is not None else self._now, budget_id=budget,
            role=before.role if before is not None else "user",
        )  # fmt: skip
        spent = nano(taken.take("spend", "opening rows of the ledger")) or 0
        reset_at = self._reset_of_budget.get(budget) if budget is not None else None
        self.found.spent.append(Spent("member", member_id(team, user), spent, reset_at, nano(taken.get("total_spend"))))
        taken.finish(WITHOUT)

    def _user(self, row: Row) -> None:
        name = str(row["user_id"])
        taken = self._taken("UserTable", row, row.get("user_email") or name)
        taken.take("user_id", "user")
        found = common(taken, self._zone, self._now)
        if name == WHOLE_PROXY:
            taken.part("user_id", "changed", "opening rows of the ledger", "the spend of the whole proxy, no user")
            self.found.spent.append(Spent("global", "all", found.spent, found.reset_at))
            return
        if name in self._team_users:
            self._free_team_keys(taken, name, found)
        role = taken.take("user_role", "role")
        if role is not None and role not in ROLES:
            ours = "internal_user" if role == "org_admin" else "internal_user_viewer"
            taken.part("user_role", "changed", "role", f"{ours}, for '{role}' is no role of a user here")
            role = ours
        self._add(
            "user", name, found, alias=taken.take("user_alias", "alias"), role=role,
            email=taken.take("user_email", "email"), organization_id=taken.take("organization_id") or None,
        )  # fmt: skip
        taken.get("teams")  # its members say the same
        taken.nothing("team_id", "who is in a team stands in the team")
        taken.nothing("password", "there is no admin page to log in to; not copied")
        taken.nothing("sso_user_id", "an issuer's claims name the user; see auth.issuers")
        taken.finish(WITHOUT)

    def _free_team_keys(self, taken: Taken, name: str, found: Common) -> None:
        """There a user's models and budget bind personal keys only, here all keys below."""
        fields = found.fields
        if fields["models"]:
            self._personal_models[name] = fields["models"]
            fields["models"] = ()
            taken.part("models", "changed", "keys.models", "written into the user's own keys; those of teams are free")
        if fields["max_budget_nano"] is None and fields["budget_id"] is None:
            return
        if name in self._personal_users:
            taken.part("max_budget", "changed", "max_budget", "here it binds the user's team keys too")
        else:
            fields.update(max_budget_nano=None, budget_id=None, budget_windows=())
            taken.part(
                "max_budget", "changed", "", "not carried over: the user has team keys alone, which it never bound"
            )

    def _end_user(self, row: Row) -> None:
        taken = self._taken("EndUserTable", row, row["user_id"])
        name = str(taken.take("user_id", "end_user"))
        found = common(taken, self._zone, self._now)
        self._add("end_user", name, found, alias=taken.take("alias"))
        taken.nothing("allowed_model_region", "models have no regions to choose from")
        taken.nothing("default_model", "clients name the model")
        taken.finish(WITHOUT)

    def _tag(self, row: Row) -> None:
        taken = self._taken("TagTable", row, row["tag_name"])
        name = str(taken.take("tag_name", "tag"))
        found = common(taken, self._zone, self._now)
        if text := taken.take("description", "metadata.description"):
            found.fields["metadata"] = {**found.fields["metadata"], "description": text}
        self._add("tag", name, found)
        taken.nothing("model_info", "models of a tag are named by their names")
        taken.finish(WITHOUT)

    def _add(self, kind: str, name: str, found: Common, **fields: Any) -> None:
        merged = {**found.fields, **fields}
        self.found.principals[kind, name] = PrincipalRow(kind=kind, principal_id=name, **merged)
        if kind != "budget":
            self._spent(kind, name, found, merged)

    def _spent(self, kind: str, name: str, found: Common, fields: Mapping[str, Any]) -> None:
        reset_at = found.reset_at
        if fields["max_budget_nano"] is None and fields["budget_id"] is not None:
            reset_at = self._reset_of_budget.get(fields["budget_id"], reset_at)
        windows = self._window_spend.get((kind, name), {})
        self.found.spent.append(
            Spent(
                kind,
                name,
                found.spent,
                reset_at,
                found.total,
                fields.get("key_alias"),
                tuple(windows.get(word) for word in found.window_words),
            )
        )

    def _window(self, row: Row) -> None:
        taken = self._taken("BudgetWindowSpend", row, f"{row['entity_type']}/{row['entity_id']}")
        kind = {"key": "key", "api_key": "key", "token": "key", "team": "team"}.get(str(row["entity_type"]).lower())
        taken.get("entity_type")
        taken.get("entity_id")
        begun_at = instant(taken.get("window_start"))
        duration = str(taken.get("window_duration"))
        if kind is None:
            taken.nothing("spend", "windows are those of keys and teams; look up what it did there")
        else:
            spent = nano(taken.take("spend", "opening rows of the ledger")) or 0
            if begun_at is None or begun_at <= self._now:
                self._window_spend.setdefault((kind, str(row["entity_id"])), {})[duration] = spent
        taken.finish({**WITHOUT, "id": "a number of its own", "updated_at": "not needed"})

    # Keys

    def _key(self, row: Row) -> None:
        shown = row.get("key_alias") or row.get("key_name") or f"{str(row['token'])[:8]}…"
        taken = self._taken("VerificationToken", row, shown)
        token = str(row["token"])
        if row.get("team_id") == DASHBOARD:
            self._book.add(KEYS, "token", "no equivalent", text="a session of the admin page, not a key", name=shown)
            return
        if token in self._masters:
            self._book.add(KEYS, "token", "changed", to="auth.master_key", text="the master key; it stands in the file")
            return
        if not is_hash(token):
            if not token.startswith("sk-"):
                self._book.add(KEYS, "token", "no equivalent", text="neither a key nor a SHA-256 of one", name="-")
                return
            taken.changed("token", "keys", "it stood there in plain text; its SHA-256 is kept")
            token = hash_key(token)
        else:
            taken.take("token", "keys")
        found = common(taken, self._zone, self._now)
        fields = found.fields
        user, team = taken.take("user_id") or None, taken.take("team_id") or None
        if team is None and user in self._personal_models:
            fields["models"] = narrowed(fields["models"], self._personal_models[user])
        self._project(taken, fields)
        self._routes(taken, fields)
        fields |= {
            "key_name": taken.take("key_name") or "sk-...", "key_alias": self._alias(taken, token),
            "user_id": user, "team_id": team, "organization_id": taken.take("organization_id") or None,
            "tags": found.tags, "expires_at": instant(taken.take("expires", "expires_at")),
            "last_used_at": instant(taken.take("last_active", "last_used_at")),
        }  # fmt: skip
        aliases = fields["model_aliases"] = _aliases(taken.take("aliases"))
        if len(aliases) < len(mapping(taken.get("aliases"))):
            taken.part("aliases", "no equivalent", "", "a name with a wildcard, or one of more than a hundred")
        self._rotation(taken, fields)
        self.found.keys[token] = KeyRow(key_hash=token, **fields)
        self._spent("key", token, found, fields)
        taken.nothing("config", "routing is the same for all keys; see models")
        taken.nothing("permissions", "what a key may do follows from its user's role")
        taken.nothing("budget_fallbacks", "a spent budget is answered with 429; there is no other model then")
        taken.nothing("agent_id", "there are no agents")
        taken.nothing("soft_budget_cooldown", "state of its alerts; nothing to take")
        taken.nothing("rotation_count", "counted in the audit log from now on")
        taken.nothing("last_rotation_at", "in the audit log from now on")
        taken.finish(WITHOUT)

    def _alias(self, taken: Taken, token: str) -> str | None:
        alias = taken.take("key_alias") or None
        if alias in self._key_aliases:
            taken.part("key_alias", "changed", "key_alias", "another key has it; a piece of the hash was appended")
            alias = f"{alias}-{token[:6]}"
        if alias is not None:
            self._key_aliases.add(alias)
        return alias

    def _project(self, taken: Taken, fields: dict[str, Any]) -> None:
        """What a project forbids is written into its keys."""
        taken.nothing("project_id", "there are no projects; the project's limits and budget bind no longer")
        is_blocked, models = self._projects.get(str(taken.get("project_id")), (False, ()))
        if is_blocked:
            fields["blocked"] = True
            taken.part("project_id", "changed", "blocked", "its project is blocked")
        if models:
            fields["models"] = narrowed(fields["models"], models)
            taken.part("project_id", "changed", "models", "narrowed to the models of its project")

    def _routes(self, taken: Taken, fields: dict[str, Any]) -> None:
        """A key that could not call models there gets none here; what else it could do, its user's role says."""
        routes = texts(taken.get("allowed_routes"))
        kind = taken.get("key_type")
        if routes and not set(routes) & _CALLS:
            fields["models"] = (NO_MODELS,)
            taken.part("allowed_routes", "changed", "models", f"{NO_MODELS}: it could not call chat completions there")
        elif routes:
            taken.part("allowed_routes", "changed", "", "it may call models; what it may manage follows from its role")
        elif kind in ("management", "read_only"):
            fields["models"] = (NO_MODELS,)
            taken.part("key_type", "changed", "models", f"{NO_MODELS}: it could not call models there")

    def _rotation(self, taken: Taken, fields: dict[str, Any]) -> None:
        interval = taken.get("rotation_interval")
        due = instant(taken.get("key_rotation_at"))
        if not taken.get("auto_rotate") or not interval:
            return
        try:
            parse_duration(str(interval))
        except ValueError:
            taken.nothing("rotation_interval", "not a duration here")
            return
        fields |= {"rotation_interval": str(interval), "rotates_at": due}
        taken.part("rotation_interval", "taken", "rotation_interval", "")

    def _old_key(self, row: Row) -> None:
        """Replaced, and good until `revoke_at`: as ours are in their grace period."""
        taken = self._taken("DeprecatedVerificationToken", row, f"{str(row['token'])[:8]}…")
        token, active = str(taken.take("token", "keys")), str(taken.take("active_token_id", "successor_hash"))
        until = instant(taken.take("revoke_at", "expires_at"))
        newest = self.found.keys.get(active)
        for column in ("id", "created_at"):
            taken.get(column)
        if newest is None or not is_hash(token) or until is None:
            taken.part("active_token_id", "no equivalent", "", "the key that took its place is not there")
        else:
            self.found.keys[token] = msgspec.structs.replace(
                newest, key_hash=token, key_id=active, successor_hash=active, key_alias=None, rotation_interval=None,
                rotates_at=None, expires_at=until if newest.expires_at is None else min(until, newest.expires_at),
            )  # fmt: skip
        taken.finish(WITHOUT)

    def _taken(self, table: str, row: Row, name: Any) -> Taken:
        return Taken(self._book, PREFIX + table, row, str(name))


def _aliases(value: Any) -> dict[str, str]:
    """Names of models as a key's and a team's may be here."""
    found = {str(name): target for name, target in mapping(value).items() if isinstance(target, str)}
    kept = ((name, target) for name, target in found.items() if name and target and "*" not in name + target)
    return dict(list(kept)[:100])
