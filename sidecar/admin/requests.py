"""What each endpoint takes, as models. `null` takes a value away; in an update only the named fields change.

Neighbours: `fields.py` (the values), `policy.py` (what they become), `table.py` (which endpoint takes which).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from sidecar.admin.fields import (
    Aliases,
    Count,
    Counts,
    Duration,
    Instant,
    KeyReference,
    Metadata,
    Money,
    Name,
    Names,
    Paged,
    Query,
    Spender,
    Strict,
)


class BudgetLimit(Strict):
    """One further budget window."""

    budget_duration: Duration | None = None
    max_budget: Money


def _distinct(windows: list[BudgetLimit]) -> list[BudgetLimit]:
    if len({window.budget_duration for window in windows}) != len(windows):
        raise ValueError("names a budget_duration twice")
    return windows


class PolicyFields(Strict):
    """What a key and everybody above it may carry."""

    models: Names | None = None
    max_budget: Money | None = None
    budget_duration: Duration | None = None
    budget_limits: Annotated[list[BudgetLimit], Field(max_length=8), AfterValidator(_distinct)] | None = None
    soft_budget: Money | None = None
    temp_budget_increase: Money | None = None
    temp_budget_expiry: Instant | None = None
    rpm_limit: Count | None = None
    tpm_limit: Count | None = None
    max_parallel_requests: Count | None = None
    model_rpm_limit: Counts | None = None
    model_tpm_limit: Counts | None = None
    model_max_parallel_requests: Counts | None = None
    metadata: Metadata | None = None


class OwnedFields(PolicyFields):
    """The same for who may share a budget and be blocked."""

    budget_id: Name | None = None
    blocked: bool | None = None


class KeyFields(OwnedFields):
    """What a key can be given."""

    key_alias: Name | None = None
    duration: Duration | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    organization_id: Name | None = None
    tags: Annotated[list[Name], Field(max_length=20)] | None = None
    auto_rotate: bool | None = None
    rotation_interval: Duration | None = None
    aliases: Aliases | None = None


class GenerateKey(KeyFields):
    """`POST /key/generate`."""


class UpdateKey(KeyFields):
    """`POST /key/update`."""

    key: KeyReference


class NameKey(Strict):
    """`POST /key/block`, `POST /key/unblock`."""

    key: KeyReference


class RegenerateKey(Strict):
    """`POST /key/regenerate`. `grace_period`: how long the old key still works."""

    key: KeyReference
    grace_period: Duration | None = None
    duration: Duration | None = None


class DeleteKeys(Strict):
    """`POST /key/delete`: keys, aliases or both."""

    keys: Annotated[list[KeyReference], Field(max_length=1000)] = Field([])
    key_aliases: Names = Field([])


class KeyInfo(Query):
    """`GET /key/info`; without `key` the calling one."""

    key: KeyReference | None = None


class ListKeys(Paged):
    """`GET /key/list`."""

    key: KeyReference | None = None
    key_alias: Name | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    organization_id: Name | None = None
    budget_id: Name | None = None
    blocked: bool | None = None
    return_full_object: bool = True


Role = Literal["proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer"]
Ids = Annotated[list[Name], Field(min_length=1, max_length=100)]


class UserFields(OwnedFields):
    """What a user can be given."""

    user_alias: Name | None = None
    user_email: Name | None = None
    user_role: Role | None = None


class NewUser(UserFields):
    """`POST /user/new`. Without `user_id` one is made; `auto_create_key=false`: no key with it."""

    user_id: Name | None = None
    auto_create_key: bool = True


class UpdateUser(UserFields):
    """`POST /user/update`."""

    user_id: Name


class DeleteUsers(Strict):
    """`POST /user/delete`: with their keys and memberships."""

    user_ids: Ids


class UserQuery(Query):
    """`GET /user/info`; without `user_id` the calling one."""

    user_id: Name | None = None


class ListUsers(Paged):
    """`GET /user/list`."""

    user_id: Name | None = None
    user_email: Name | None = None
    role: Role | None = None


class TeamFields(OwnedFields):
    """What a team can be given."""

    team_alias: Name | None = None
    organization_id: Name | None = None
    model_aliases: Aliases | None = None


class NewTeam(TeamFields):
    """`POST /team/new`. Without `team_id` one is made."""

    team_id: Name | None = None


class UpdateTeam(TeamFields):
    """`POST /team/update`."""

    team_id: Name


class NameTeam(Strict):
    """`POST /team/block`, `POST /team/unblock`."""

    team_id: Name


class DeleteTeams(Strict):
    """`POST /team/delete`: with their keys and members."""

    team_ids: Ids


class TeamQuery(Query):
    """`GET /team/info`."""

    team_id: Name


class ListTeams(Paged):
    """`GET /team/list`."""

    team_id: Name | None = None
    team_alias: Name | None = None
    organization_id: Name | None = None


class OrganizationFields(OwnedFields):
    """What an organization can be given."""

    organization_alias: Name | None = None


class NewOrganization(OrganizationFields):
    """`POST /organization/new`. Without `organization_id` one is made."""

    organization_id: Name | None = None


class UpdateOrganization(OrganizationFields):
    """`POST` or `PATCH /organization/update`."""

    organization_id: Name


class DeleteOrganizations(Strict):
    """`POST` or `DELETE /organization/delete`: refused while teams or keys are in one."""

    organization_ids: Ids


class OrganizationQuery(Query):
    """`GET /organization/info`."""

    organization_id: Name


class ListOrganizations(Paged):
    """`GET /organization/list`."""

    organization_id: Name | None = None
    organization_alias: Name | None = None


class CustomerFields(OwnedFields):
    """What an end user can be given."""

    alias: Name | None = None


class NewCustomer(CustomerFields):
    """`POST /customer/new`: the name requests give as `user`."""

    user_id: Name


class UpdateCustomer(NewCustomer):
    """`POST /customer/update`."""


class NameCustomers(Strict):
    """`POST /customer/delete`, `/customer/block`, `/customer/unblock`."""

    user_ids: Ids


class CustomerQuery(Query):
    """`GET /customer/info`."""

    end_user_id: Name


class ListCustomers(Paged):
    """`GET /customer/list`."""

    user_id: Name | None = None
    alias: Name | None = None
    blocked: bool | None = None


class NewBudget(PolicyFields):
    """`POST /budget/new`: limits and budgets that others name. Without `budget_id` one is made."""

    budget_id: Name | None = None


class UpdateBudget(PolicyFields):
    """`POST /budget/update`."""

    budget_id: Name


class DeleteBudget(Strict):
    """`POST /budget/delete`: refused while somebody names it."""

    id: Name


class BudgetQuery(Query):
    """`GET /budget/info`."""

    budget_id: Name


class NameBudgets(Strict):
    """`POST /budget/info`."""

    budgets: Ids


class ListBudgets(Paged):
    """`GET /budget/list`."""

    budget_id: Name | None = None


class TagFields(OwnedFields):
    """What a tag can be given."""

    description: Name | None = None


class NewTag(TagFields):
    """`POST /tag/new`: the name requests give in `x-sidecar-tags`."""

    name: Name


class UpdateTag(NewTag):
    """`POST /tag/update`."""


class DeleteTag(Strict):
    """`POST /tag/delete`."""

    name: Name


class TagQuery(Query):
    """`GET /tag/info`."""

    name: Name


class NameTags(Strict):
    """`POST /tag/info`."""

    names: Ids


class ListTags(Paged):
    """`GET /tag/list`."""

    name: Name | None = None


def _one_or_more(*roles: str) -> Any:
    """A member `{"user_id": …, "role": …}`, or a list of them."""
    one = {
        "type": "object",
        "properties": {
            "user_id": {"type": "string", "minLength": 1, "maxLength": 255},
            "role": {"type": "string", "enum": list(roles)},
        },
        "required": ["user_id"],
        "additionalProperties": False,
    }
    schema = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 100}]}
    return BeforeValidator(lambda value: [value] if isinstance(value, dict) else value), WithJsonSchema(schema)


class MemberFields(OwnedFields):
    """A user in a team. `max_budget_in_team` is another name of its `max_budget`."""

    max_budget_in_team: Money | None = None


class NewMember(Strict):
    user_id: Name
    role: Literal["admin", "user"] = "user"


class AddMembers(MemberFields):
    """`POST /team/member_add`: one member or several, who get the same limits."""

    team_id: Name
    member: Annotated[list[NewMember], Field(min_length=1, max_length=100), *_one_or_more("admin", "user")]


class UpdateMember(MemberFields):
    """`POST /team/member_update`."""

    team_id: Name
    user_id: Name
    role: Literal["admin", "user"] | None = None


class NameMember(Strict):
    """`POST /team/member_delete`."""

    team_id: Name
    user_id: Name


OrganizationRole = Literal["org_admin", "internal_user", "internal_user_viewer"]


class NewOrganizationMember(Strict):
    user_id: Name
    role: OrganizationRole = "internal_user"


class AddOrganizationMembers(Strict):
    """`POST /organization/member_add`."""

    organization_id: Name
    member: Annotated[
        list[NewOrganizationMember],
        Field(min_length=1, max_length=100),
        *_one_or_more("org_admin", "internal_user", "internal_user_viewer"),
    ]


class UpdateOrganizationMember(Strict):
    """`PATCH /organization/member_update`."""

    organization_id: Name
    user_id: Name
    role: OrganizationRole


class NameOrganizationMember(Strict):
    """`DELETE /organization/member_delete`."""

    organization_id: Name
    user_id: Name


class Nothing(Query):
    """No parameter."""


class TotalsQuery(Query):
    """`GET /spend/users`, `/spend/teams`. `since` is included, `until` is not."""

    since: Instant | None = None
    until: Instant | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class KeyTotalsQuery(TotalsQuery):
    """`GET /spend/keys`."""

    key: Spender | None = None


class ReportQuery(Query):
    """`GET /spend/report`. `by`: one or more of `spend.reports.BY`, comma-separated; a name alone filters."""

    by: Annotated[str, Field(min_length=1, max_length=100)] = "model"
    since: Instant | None = None
    until: Instant | None = None
    key: Spender | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    organization_id: Name | None = None
    end_user_id: Name | None = None
    tag: Name | None = None
    model_group: Name | None = None
    model: Name | None = None
    provider: Name | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    offset: Annotated[int, Field(ge=0, le=10_000_000)] = 0


class LogsQuery(KeyTotalsQuery):
    """`GET /spend/logs`."""

    exchange_id: Name | None = None
    request_id: Name | None = None
    status: Literal["settled", "estimated", "unknown", "not_billed", "free", "unpriced"] | None = None
    outcome: Name | None = None
    user_id: Name | None = None
    team_id: Name | None = None
    organization_id: Name | None = None
    end_user_id: Name | None = None
    tag: Name | None = None
    model_group: Name | None = None
    model: Name | None = None
    provider: Name | None = None
    deployment_id: Name | None = None
    cursor: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class PromptQuery(Query):
    """`GET /spend/prompts/{exchange_id}`."""

    exchange_id: Name


class ResolveUnknown(Strict):
    """`POST /spend/resolve`: what an attempt of unknown cost really cost. `attempt` if several are unknown."""

    exchange_id: Name
    cost: Money
    attempt: Annotated[int, Field(ge=0, le=1000)] | None = None


class ExchangeQuery(Query):
    """`GET /exchanges/{request_id}`: the `x-request-id` of the answer, or the one the client sent."""

    request_id: Name


class AuditQuery(Paged):
    """`GET /audit`, newest first."""

    kind: Name | None = None
    subject_id: Name | None = None
    actor: Name | None = None
    action: Name | None = None
    since: Instant | None = None
    until: Instant | None = None


def given(model: Strict, *without: str) -> dict[str, Any]:
    """The named fields and their values; nested models as they are."""
    names = model.model_fields_set - set(without)
    return {name: getattr(model, name) for name in type(model).model_fields if name in names}
