"""Tokens of an identity provider through the whole gateway: rows of user and team count, roles open the admin API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.provider import FaultProvider
from tests.identity.oidc.issuer import AUDIENCE, IssuerServer, issuer_server
from tests.promises.support import MASTER, Running, body, config_file, eventually, served

pytestmark = pytest.mark.anyio


def auth(idp: IssuerServer, **claims: Any) -> dict[str, Any]:
    return {
        "auth": {
            "master_key": MASTER,
            "issuers": [
                {
                    "name": "corp",
                    "issuer": idp.url,
                    "audiences": [AUDIENCE],
                    "algorithms": ["ES256"],
                    "deadline_s": 60,
                    "claims": {"team_ids": "groups", "roles": "roles", "role_map": {"boss": "admin"}, **claims},
                }
            ],
            "introspection": [
                {"name": "opaque", "url": f"{idp.url}/introspect", "client_id": "g", "client_secret": "s",
                 "prefixes": ["at_"], "deadline_s": 60, "claims": {"user_id": "username"}}
            ],
        }
    }  # fmt: skip


async def call(gateway: Running, token: str, **more: Any) -> httpx2.Response:
    return await gateway.chat(token, body("gpt", max_tokens=5), **more)


async def test_a_token_calls_as_its_user_and_team(tmp_path: Path, faults: FaultProvider) -> None:
    async with issuer_server(time.time) as idp, served(tmp_path, faults.base_url, top=auth(idp)) as gateway:
        token = idp.token(groups=["blue"], sub="alice")
        answer = await call(gateway, token)
        assert answer.status_code == 200, answer.text
        (row,) = await gateway.rows(at_least=1)
        assert (row["user_id"], row["team_id"], row["key_alias"]) == ("alice", "blue", "alice")
        assert (await call(gateway, idp.token(exp=time.time() - 100))).json()["error"]["code"] == "expired_token"
        assert (await call(gateway, idp.token(aud="other"))).status_code == 401
        assert (await call(gateway, "not-a-token-at-all")).status_code == 401
        idp.tokens["at_1"] = {"active": True, "username": "bob", "exp": time.time() + 100, "client_id": "c"}
        assert (await call(gateway, "at_1")).status_code == 200
        assert (await call(gateway, "at_2")).status_code == 401


async def test_the_rows_above_a_token_count_and_changes_reach_it(tmp_path: Path, faults: FaultProvider) -> None:
    from sidecar.identity.row import PrincipalRow
    from sidecar.identity.table import PrincipalTable, Store

    async with issuer_server(time.time) as idp, served(tmp_path, faults.base_url, top=auth(idp)) as gateway:
        token = idp.token(groups=["blue"], sub="alice")
        assert (await call(gateway, token)).status_code == 200
        from sidecar.db import Database

        database = Database(f"sqlite:///{tmp_path}/sidecar.db")
        table = PrincipalTable(Store(database))
        await table.create(PrincipalRow(kind="team", principal_id="blue", rpm_limit=1))

        async def is_limited() -> bool:
            return (await call(gateway, token)).status_code == 429

        await eventually(is_limited)
        limited = await call(gateway, token)
        assert "team limit is 1 requests per minute" in limited.json()["error"]["message"]
        await table.update("team", "blue", changes={"blocked": True})

        async def is_blocked() -> bool:
            return (await call(gateway, token)).status_code == 403

        await eventually(is_blocked)
        assert (await call(gateway, token)).json()["error"]["code"] == "team_blocked"
        await table.update("team", "blue", changes={"blocked": False, "rpm_limit": None, "models": ("claude",)})

        async def is_denied() -> bool:
            return (await call(gateway, token)).json()["error"]["code"] == "model_access_denied"

        await eventually(is_denied)
        await database.aclose()


async def test_users_and_teams_are_made_only_if_the_map_says_so(tmp_path: Path, faults: FaultProvider) -> None:
    from sidecar.db import Database
    from sidecar.identity.table import PrincipalTable, Store

    async with (
        issuer_server(time.time) as idp,
        served(tmp_path, faults.base_url, top=auth(idp, upsert_user=True, upsert_team=True)) as gateway,
    ):
        assert (await call(gateway, idp.token(groups=["new"], sub="carol"))).status_code == 200
        database = Database(f"sqlite:///{tmp_path}/sidecar.db")
        rows = await PrincipalTable(Store(database)).find([("user", "carol"), ("team", "new")])
        assert {(row.kind, row.principal_id, row.role) for row in rows} == {
            ("user", "carol", "internal_user"),
            ("team", "new", None),
        }
        await database.aclose()


async def test_an_issuer_that_is_down_is_503_and_known_tokens_go_on(tmp_path: Path, faults: FaultProvider) -> None:
    async with issuer_server(time.time) as idp, served(tmp_path, faults.base_url, top=auth(idp)) as gateway:
        known = idp.token(sub="alice")
        assert (await call(gateway, known)).status_code == 200
        from tests.identity.oidc.issuer import Answer

        idp.faults["/introspect"] = lambda: Answer(b"", 500)
        assert (await call(gateway, known)).status_code == 200
        down = await call(gateway, "at_unseen")
        assert (down.status_code, down.json()["error"]["code"]) == (503, "token_issuer_unavailable")


def test_a_wrong_issuer_is_an_error_of_the_file(tmp_path: Path) -> None:
    from sidecar.config import load_config
    from sidecar.config.read import ConfigError

    file = config_file(
        tmp_path, "http://127.0.0.1:1", top={"auth": {"issuers": [{"name": "x", "issuer": "http://idp.example.com"}]}}
    )
    with pytest.raises(ConfigError, match=r"auth\.issuers.*audience") as error:
        load_config(file, {})
    assert "sidecar.yaml:" in str(error.value)
