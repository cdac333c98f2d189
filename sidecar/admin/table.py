"""The management API's endpoints, a line each: method, path, what it takes, who handles it, what it does, who may call.

Administrators may call everything, their viewers every GET; others only where a line ends with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.admin import models as m
from sidecar.admin import requests as r
from sidecar.admin.access import ANY_KEY, ORG_ADMIN, OWN, READ, TEAMS, USER, USER_VIEWER, VIEWER
from sidecar.admin.audit import AuditAdmin
from sidecar.admin.endpoint import Endpoint, Handler
from sidecar.admin.exchanges import ExchangeAdmin
from sidecar.admin.keys import KeyAdmin
from sidecar.admin.spend import SpendAdmin
from sidecar.admin.subjects import OrganizationAdmin, SubjectAdmin, UserAdmin
from sidecar.admin.teams import OrganizationMembers, TeamAdmin


@dataclass(frozen=True, slots=True)
class Handlers:
    key: KeyAdmin
    user: UserAdmin
    team: TeamAdmin
    organization: OrganizationAdmin
    organization_member: OrganizationMembers
    customer: SubjectAdmin
    budget: SubjectAdmin
    tag: SubjectAdmin
    spend: SpendAdmin
    audit: AuditAdmin
    model: m.ModelAdmin | None = None
    status: Handler | None = None
    exchange: ExchangeAdmin | None = None
    resolves: bool = False
    shows_prompts: bool = False


def endpoints(h: Handlers) -> list[Endpoint]:
    table = [
        *_keys(h.key),
        *_users(h.user),
        *_teams(h.team),
        *_organizations(h.organization, h.organization_member),
        *_customers(h.customer, "/customer"),
        *_customers(h.customer, "/end_user"),
        *_budgets(h.budget),
        *_tags(h.tag),
        Endpoint("GET", "/spend/logs", r.LogsQuery, h.spend.logs, "Rows of the ledger, newest first.", READ),
        Endpoint("GET", "/spend/keys", r.KeyTotalsQuery, h.spend.keys, "What keys spent, the dearest first.", READ),
        Endpoint("GET", "/spend/users", r.TotalsQuery, h.spend.users, "What users spent, the dearest first."),
        Endpoint("GET", "/spend/teams", r.TotalsQuery, h.spend.teams, "What teams spent, the dearest first."),
        Endpoint("GET", "/spend/report", r.ReportQuery, h.spend.report, "What was spent, by whom and on what."),
        Endpoint("GET", "/audit", r.AuditQuery, h.audit.page, "Who wrote what, newest first."),
    ]
    if h.shows_prompts:
        says = "What was asked and answered, if spend.store_prompts is on."
        table.append(Endpoint("GET", "/spend/prompts/{exchange_id}", r.PromptQuery, h.spend.prompt, says))
    if h.resolves:
        says = "What an attempt of unknown cost really cost, by rows that correct it."
        table.append(Endpoint("POST", "/spend/resolve", r.ResolveUnknown, h.spend.resolve, says))
    if h.exchange is not None:
        says, others = "What became of a request and why.", READ | {ANY_KEY}
        table.append(Endpoint("GET", "/exchanges/{request_id}", r.ExchangeQuery, h.exchange.info, says, others))
    if h.status is not None:
        table.append(Endpoint("GET", "/status", r.Nothing, h.status, "How the gateway is, and its jobs."))
    return table + (_models(h.model) if h.model is not None else [])


def _keys(h: KeyAdmin) -> Sequence[Endpoint]:
    return (
        Endpoint("POST", "/key/generate", r.GenerateKey, h.generate, "Make a key; it is shown here only.", OWN),
        Endpoint("POST", "/key/update", r.UpdateKey, h.update, "Change what is named; null takes away.", OWN),
        Endpoint("POST", "/key/delete", r.DeleteKeys, h.delete, "Delete all of these keys, or none.", OWN),
        Endpoint("POST", "/key/regenerate", r.RegenerateKey, h.regenerate, "A new key in the place of this one.", OWN),
        Endpoint("POST", "/key/{key}/regenerate", r.RegenerateKey, h.regenerate, "The same, named by the path.", OWN),
        Endpoint("POST", "/key/block", r.NameKey, h.block, "Refuse this key.", TEAMS),
        Endpoint("POST", "/key/unblock", r.NameKey, h.unblock, "Take it again.", TEAMS),
        Endpoint("GET", "/key/info", r.KeyInfo, h.info, "One key; the calling one unless named.", READ | {ANY_KEY}),
        Endpoint("GET", "/key/list", r.ListKeys, h.page, "The keys the caller sees.", READ),
    )


def _users(h: UserAdmin) -> Sequence[Endpoint]:
    own = frozenset({USER, USER_VIEWER})
    return (
        Endpoint("POST", "/user/new", r.NewUser, h.new, "Make a user, and a key for it."),
        Endpoint("POST", "/user/update", r.UpdateUser, h.update, "Change what is named; null takes away."),
        Endpoint("POST", "/user/delete", r.DeleteUsers, h.delete, "Delete users with keys and memberships."),
        Endpoint("GET", "/user/info", r.UserQuery, h.info, "One user with keys and teams.", own),
        Endpoint("GET", "/user/list", r.ListUsers, h.page, "All users."),
        Endpoint("GET", "/user/available_roles", r.Nothing, h.roles, "The roles a user can have.", READ),
    )


def _teams(h: TeamAdmin) -> Sequence[Endpoint]:
    led = frozenset({ORG_ADMIN})
    return (
        Endpoint("POST", "/team/new", r.NewTeam, h.new, "Make a team.", led),
        Endpoint("POST", "/team/update", r.UpdateTeam, h.update, "Change what is named; null takes away.", TEAMS),
        Endpoint("POST", "/team/delete", r.DeleteTeams, h.delete, "Delete teams with keys and members."),
        Endpoint("POST", "/team/block", r.NameTeam, h.block, "Refuse every key of the team.", led),
        Endpoint("POST", "/team/unblock", r.NameTeam, h.unblock, "Take them again.", led),
        Endpoint("GET", "/team/info", r.TeamQuery, h.info, "One team with keys and members.", TEAMS),
        Endpoint("GET", "/team/list", r.ListTeams, h.page, "The teams the caller administers.", TEAMS),
        Endpoint("POST", "/team/member_add", r.AddMembers, h.add_members, "Put users into a team.", TEAMS),
        Endpoint("POST", "/team/member_update", r.UpdateMember, h.update_member, "Change a member.", TEAMS),
        Endpoint("POST", "/team/member_delete", r.NameMember, h.delete_member, "Take a user out of a team.", TEAMS),
    )


def _organizations(h: OrganizationAdmin, o: OrganizationMembers) -> Sequence[Endpoint]:
    led = frozenset({ORG_ADMIN})
    change, remove = "Change what is named; null takes away.", "Delete organizations that are not used."
    role, leave = "Change a member's role.", "Take a user out of an organization."
    return (
        Endpoint("POST", "/organization/new", r.NewOrganization, h.new, "Make an organization."),
        Endpoint("POST", "/organization/update", r.UpdateOrganization, h.update, change),
        Endpoint("PATCH", "/organization/update", r.UpdateOrganization, h.update, change),
        Endpoint("POST", "/organization/delete", r.DeleteOrganizations, h.delete, remove),
        Endpoint("DELETE", "/organization/delete", r.DeleteOrganizations, h.delete, remove),
        Endpoint("GET", "/organization/info", r.OrganizationQuery, h.info, "One, with teams and members.", led),
        Endpoint("GET", "/organization/list", r.ListOrganizations, h.page, "Those the caller administers.", led),
        Endpoint("POST", "/organization/member_add", r.AddOrganizationMembers, o.add, "Put users into it."),
        Endpoint("POST", "/organization/member_update", r.UpdateOrganizationMember, o.update, role),
        Endpoint("PATCH", "/organization/member_update", r.UpdateOrganizationMember, o.update, role),
        Endpoint("POST", "/organization/member_delete", r.NameOrganizationMember, o.delete, leave),
        Endpoint("DELETE", "/organization/member_delete", r.NameOrganizationMember, o.delete, leave),
    )


def _customers(h: SubjectAdmin, path: str) -> Sequence[Endpoint]:
    return (
        Endpoint("POST", f"{path}/new", r.NewCustomer, h.new, "Give an end user limits."),
        Endpoint("POST", f"{path}/update", r.UpdateCustomer, h.update, "Change what is named; null takes away."),
        Endpoint("POST", f"{path}/delete", r.NameCustomers, h.delete, "Delete end users."),
        Endpoint("POST", f"{path}/block", r.NameCustomers, h.block, "Refuse these end users."),
        Endpoint("POST", f"{path}/unblock", r.NameCustomers, h.unblock, "Take them again."),
        Endpoint("GET", f"{path}/info", r.CustomerQuery, h.info, "One end user."),
        Endpoint("GET", f"{path}/list", r.ListCustomers, h.page, "All end users that have a row."),
    )


def _budgets(h: SubjectAdmin) -> Sequence[Endpoint]:
    viewers = frozenset({VIEWER})
    return (
        Endpoint("POST", "/budget/new", r.NewBudget, h.new, "Make limits and budgets that others name."),
        Endpoint("POST", "/budget/update", r.UpdateBudget, h.update, "Change what is named; null takes away."),
        Endpoint("POST", "/budget/delete", r.DeleteBudget, h.delete, "Delete one that nobody names."),
        Endpoint("GET", "/budget/info", r.BudgetQuery, h.info, "One shared budget."),
        Endpoint("POST", "/budget/info", r.NameBudgets, h.infos, "Several.", viewers),
        Endpoint("GET", "/budget/list", r.ListBudgets, h.page, "All of them."),
    )


def _tags(h: SubjectAdmin) -> Sequence[Endpoint]:
    viewers = frozenset({VIEWER})
    return (
        Endpoint("POST", "/tag/new", r.NewTag, h.new, "Give a tag limits."),
        Endpoint("POST", "/tag/update", r.UpdateTag, h.update, "Change what is named; null takes away."),
        Endpoint("POST", "/tag/delete", r.DeleteTag, h.delete, "Delete a tag."),
        Endpoint("GET", "/tag/info", r.TagQuery, h.info, "One tag."),
        Endpoint("POST", "/tag/info", r.NameTags, h.infos, "Several.", viewers),
        Endpoint("GET", "/tag/list", r.ListTags, h.page, "All tags that have a row."),
    )


def _models(h: m.ModelAdmin) -> list[Endpoint]:
    return [
        Endpoint("POST", "/model/new", m.NewModel, h.new, "Add a deployment."),
        Endpoint("POST", "/model/update", m.UpdateModel, h.update, "Change one that was added."),
        Endpoint("POST", "/model/delete", m.DeleteModel, h.delete, "Delete one that was added."),
        Endpoint("GET", "/model/info", m.ModelQuery, h.info, "All deployments."),
        Endpoint("GET", "/v1/model/info", m.ModelQuery, h.info, "The same."),
    ]
