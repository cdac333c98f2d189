"""One of each role, with what is below it: organization `o` with teams `t` and `u`, organization `p` with team `x`."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.admin.conftest import MASTER, Api

USERS = {
    "admin": "proxy_admin",
    "viewer": "proxy_admin_viewer",
    "olga": "internal_user",
    "tina": "internal_user",
    "ivan": "internal_user",
    "vera": "internal_user_viewer",
}


class World:
    """`keys`: a key for each caller, by name. olga leads the organization `o`, tina the team `t`; ivan is in `t`."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.keys: dict[str, str] = {"master": MASTER}

    async def build(self) -> World:
        done = self.api.done
        for name in ("o", "p"):
            await done("/organization/new", organization_id=name)
        for name, organization in (("t", "o"), ("u", "o"), ("x", "p")):
            await done("/team/new", team_id=name, organization_id=organization)
        for name, role in USERS.items():
            await done("/user/new", user_id=name, user_role=role, auto_create_key=False)
        await done("/organization/member_add", organization_id="o", member={"user_id": "olga", "role": "org_admin"})
        await done("/team/member_add", team_id="t", member=[{"user_id": "tina", "role": "admin"}, {"user_id": "ivan"}])
        for name in USERS:
            await self.make(name, user_id=name)
        await self.make("nobody")
        await self.make("in t", team_id="t")
        await self.make("in x", team_id="x")
        self.api.minted.clear()  # callers send their keys, and may make more
        return self

    async def make(self, caller: str, **fields: Any) -> dict[str, Any]:
        made = await self.api.done("/key/generate", key_alias=caller, **fields)
        self.keys[caller] = made["key"]
        return made

    async def post(self, caller: str, path: str, **body: Any) -> httpx2.Response:
        return await self.api.call("POST", path, self.keys[caller], json=body)

    async def get(self, caller: str, path: str, **query: Any) -> httpx2.Response:
        return await self.api.call("GET", path, self.keys[caller], params=query)

    async def ok(self, caller: str, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.post(caller, path, **body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def refused(self, caller: str, path: str, status: int, param: str | None, **body: Any) -> str:
        """The code of the refusal."""
        answer = await self.post(caller, path, **body)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["param"] == param, error
        return str(error["code"])
