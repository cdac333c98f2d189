"""Whose a kept response is and where it is: over two gateways that share nothing but their master key, in front of two
accounts that know only their own ids. One client must never reach another's through the credential all share.
"""

from __future__ import annotations

import string
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.routing import Mount

from sidecar.simulated import serve
from tests.e2e.responses_account import WORDS, Account
from tests.e2e.test_responses import deployment
from tests.promises.support import MASTER, PROVIDER_KEY, Running, raw, served

pytestmark = pytest.mark.anyio

OTHER_KEY = "sk-second-account-0123456789"


class Fleet(NamedTuple):
    one: Running
    two: Running
    accounts: tuple[Account, Account]

    def of(self, response_id: str) -> tuple[Account, Account]:
        """(the account that keeps it, the other)."""
        first, second = self.accounts
        return (first, second) if response_id.rpartition("_g")[0] in first.kept else (second, first)

    @property
    def calls(self) -> int:
        return sum(len(account.asked) for account in self.accounts)


@pytest.fixture(scope="module")
async def fleet_of_file(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    accounts = Account(PROVIDER_KEY), Account(OTHER_KEY)
    async with serve(accounts[0]) as first, serve(accounts[1]) as second:
        one_account = {"deployments": [deployment(first)]}
        top = {
            "models": [
                {"name": "gpt", "deployments": [deployment(first), deployment(second, OTHER_KEY)]},
                {"name": "mini", "deployments": [deployment(first, model="mini-1"), deployment(second, OTHER_KEY)]},
                {"name": "first-only", **one_account},
                {"name": "any/*", "deployments": [deployment(first, model="*")]},
            ],
            "routing": {"retries": 2, "cooldown_s": 0.001},
        }
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
        # Keys are rows, so both read the same database; journals, memory and limits are each one's own.
        store = {"database_url": f"sqlite:///{folders[0]}/sidecar.db"}
        mounted: Any = {"mount": lambda g: Starlette(routes=[Mount("/llm", app=g)]), "prefix": "/llm"}
        async with (
            served(folders[0], first, top=top | {"store": store}) as one,
            served(folders[1], first, top=top | {"store": store}, **mounted) as two,
        ):
            yield Fleet(one, two, accounts)


@pytest.fixture
def fleet(fleet_of_file: Fleet) -> Fleet:
    for account in fleet_of_file.accounts:
        account.asked.clear()
        account.script.clear()
    return fleet_of_file


def sdk(gateway: Running, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


async def test_a_conversation_goes_on_at_the_account_that_keeps_it_whichever_gateway_is_asked(fleet: Fleet) -> None:
    key = await fleet.one.mint()
    async with sdk(fleet.one, key) as one, sdk(fleet.two, key) as two:
        number, homes = 0, set[str]()
        while number < 4 or (len(homes) < 2 and number < 60):
            number += 1
            before = await one.responses.create(model="gpt", input="hi", stream=False)
            home, _ = fleet.of(before.id)
            homes.add(home.key)
            for _ in range(3):
                client = two if number % 2 else one
                answer = await client.responses.create(model="gpt", input="on", previous_response_id=before.id)
                assert answer.output_text == "".join(WORDS)
                assert answer.previous_response_id == before.id
                assert home.asked[-1].body["previous_response_id"] == before.id.rpartition("_g")[0]
                assert fleet.of(answer.id)[0] is home
                before = answer
    assert len(homes) == 2, "both accounts had conversations"


async def test_a_stream_goes_on_and_is_gone_on_from(fleet: Fleet) -> None:
    key = await fleet.one.mint()
    async with sdk(fleet.one, key) as one, sdk(fleet.two, key) as two:
        first = [e async for e in await one.responses.create(model="gpt", input="hi", stream=True)][-1].response
        events = [
            e
            async for e in await two.responses.create(
                model="gpt", input="on", previous_response_id=first.id, stream=True
            )
        ]
        shown = {e.response.previous_response_id for e in events if hasattr(e, "response")}
        assert shown == {first.id}
        assert fleet.of(events[-1].response.id)[0] is fleet.of(first.id)[0]


async def test_another_model_of_the_same_account_goes_on_one_of_another_does_not(fleet: Fleet) -> None:
    key = await fleet.one.mint()
    async with sdk(fleet.one, key) as client:
        found: dict[int, str] = {}
        while len(found) < 2:
            answer = await client.responses.create(model="gpt", input="hi")
            found[fleet.accounts.index(fleet.of(answer.id)[0])] = answer.id
        for index, before in found.items():
            await client.responses.create(model="mini", input="on", previous_response_id=before)
            assert fleet.accounts[index].asked[-1].body["previous_response_id"] == before.rpartition("_g")[0]
        await client.responses.create(model="any/gpt-4.1", input="on", previous_response_id=found[0])
        calls = fleet.calls
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model="first-only", input="on", previous_response_id=found[1])
        assert caught.value.code == "previous_response_not_found"
        assert fleet.calls == calls


async def test_a_failing_account_is_tried_again_and_never_replaced(fleet: Fleet) -> None:
    key = await fleet.one.mint()
    async with sdk(fleet.one, key) as client:
        before = await client.responses.create(model="gpt", input="hi")
        home, other = fleet.of(before.id)
        others = len(other.asked)
        home.script[:] = [500]
        await client.responses.create(model="gpt", input="on", previous_response_id=before.id)
        home.script[:] = [500] * 3
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="gpt", input="on", previous_response_id=before.id)
        assert len(other.asked) == others


async def test_a_response_its_provider_has_forgotten_is_told_by_the_clients_id(fleet: Fleet) -> None:
    async with sdk(fleet.one, await fleet.one.mint()) as client:
        before = await client.responses.create(model="gpt", input="hi", store=False)
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(model="gpt", input="on", previous_response_id=before.id, stream=stream)
            assert caught.value.code == "previous_response_not_found"
            assert f"'{before.id}'" in caught.value.message


async def test_nobody_reads_goes_on_from_or_deletes_what_is_anothers(fleet: Fleet) -> None:
    async with sdk(fleet.one, await fleet.one.mint(user_id="ada")) as mine:
        before = await mine.responses.create(model="gpt", input="my secret")
        plain = before.id.rpartition("_g")[0]
        calls = fleet.calls
        owners = [{"user_id": "eve"}, {"team_id": await team(fleet, "evil")}, {}]
        for fields in owners:
            async with sdk(fleet.one, await fleet.one.mint(**fields)) as theirs:
                for response_id in (before.id, plain):
                    with pytest.raises(openai.NotFoundError) as caught:
                        await theirs.responses.create(model="gpt", input="on", previous_response_id=response_id)
                    assert caught.value.code == "previous_response_not_found"
                    assert caught.value.message.count(f"Previous response with id '{response_id}' not found.") == 1
                    for call in (
                        theirs.responses.retrieve(response_id),
                        theirs.responses.delete(response_id),
                        theirs.responses.cancel(response_id),
                    ):
                        with pytest.raises(openai.NotFoundError):
                            await call
                    with pytest.raises(openai.NotFoundError):
                        await theirs.responses.input_items.list(response_id)
        with pytest.raises(openai.NotFoundError):
            await mine.responses.retrieve(plain)
        assert fleet.calls == calls, "a provider was asked"
        assert (await mine.responses.retrieve(before.id)).id == before.id


async def team(fleet: Fleet, name: str) -> str:
    made = await fleet.one.admin("/team/new", {"team_alias": name})
    return str(made["team_id"])


async def test_a_new_key_of_the_same_team_or_user_goes_on(fleet: Fleet) -> None:
    team_id = await team(fleet, "writers")
    for fields in ({"user_id": "grace"}, {"team_id": team_id, "user_id": "grace"}):
        async with sdk(fleet.one, await fleet.one.mint(**fields)) as old:
            before = await old.responses.create(model="gpt", input="hi")
        async with sdk(fleet.two, await fleet.one.mint(**fields)) as new:
            await new.responses.create(model="gpt", input="on", previous_response_id=before.id)
            assert (await new.responses.retrieve(before.id)).id == before.id
    async with sdk(fleet.one, await fleet.one.mint(user_id="grace")) as alone:
        with pytest.raises(openai.NotFoundError):
            await alone.responses.retrieve(before.id)  # the team's, not hers


async def test_no_character_of_an_id_can_be_changed(fleet: Fleet) -> None:
    key = await fleet.one.mint()
    async with sdk(fleet.one, key) as client:
        before = (await client.responses.create(model="gpt", input="hi")).id
        calls = fleet.calls
        for place in range(5, len(before)):
            old = before[place]
            new = next(c for c in string.ascii_lowercase if c != old)
            answer = await fleet.one.http.post(
                f"{fleet.one.url}/v1/responses",
                headers={"authorization": f"Bearer {key}"},
                json={
                    "model": "gpt",
                    "input": "on",
                    "previous_response_id": before[:place] + new + before[place + 1 :],
                },
            )
            assert answer.status_code == 404, (place, answer.text)
        assert fleet.calls == calls


async def test_an_id_is_not_the_callers_once_the_model_is_not(fleet: Fleet) -> None:
    key = await fleet.one.mint(models=["gpt", "mini"])
    async with sdk(fleet.one, key) as client:
        before = await client.responses.create(model="gpt", input="hi")
        await fleet.one.admin("/key/update", {"key": key, "models": ["first-only"]})
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(before.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="first-only", input="on", previous_response_id=before.id)
        with pytest.raises(openai.PermissionDeniedError):
            await client.responses.create(model="gpt", input="on", previous_response_id=before.id)


async def test_a_kept_response_is_got_listed_and_deleted_free_of_charge(fleet: Fleet) -> None:
    key = await fleet.one.mint(max_budget=1)
    async with sdk(fleet.one, key) as one, sdk(fleet.two, key) as two:
        first = await one.responses.create(model="gpt", input="hi")
        second = await one.responses.create(model="gpt", input="on", previous_response_id=first.id)
        assert len(await fleet.one.rows(key, at_least=2)) == 2
        spent = await fleet.one.spend(key)
        assert spent > 0
        home, _ = fleet.of(second.id)
        got = await two.responses.retrieve(second.id, include=["message.output_text.logprobs"])
        assert (got.id, got.output_text) == (second.id, second.output_text)
        assert home.asked[-1].target.endswith("?include%5B%5D=message.output_text.logprobs")
        assert got.previous_response_id is not None
        assert (await one.responses.retrieve(got.previous_response_id)).output_text == first.output_text
        items = await two.responses.input_items.list(second.id, limit=5, order="asc")
        assert [item.id for item in items.data] == ["msg_in"]
        with pytest.raises(openai.BadRequestError, match="Only background responses"):
            await one.responses.cancel(second.id)
        await two.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await one.responses.retrieve(second.id)  # the provider's own words, with the client's id
        assert f"'{second.id}' not found" in caught.value.message
        assert [a.method for a in home.asked[-5:]] == ["GET", "GET", "POST", "DELETE", "GET"]
        for asked in home.asked[-5:]:
            assert asked.headers["authorization"] == f"Bearer {home.key}"
            assert key not in str(asked)
        await one.responses.create(model="gpt", input="hi")
    assert len(await fleet.one.rows(key, at_least=3)) == 3
    assert await fleet.one.spend(key) == pytest.approx(spent * 1.5)


async def test_what_became_of_it_is_told_to_its_owner_alone(fleet: Fleet) -> None:
    key, other = await fleet.one.mint(rpm_limit=9), await fleet.one.mint()
    mine, theirs = {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {other}"}
    async with sdk(fleet.one, key) as client:
        before = await client.responses.create(model="gpt", input="hi")
    url = f"{fleet.one.url}/v1/responses/"
    for response_id, status, code in ((before.id, 200, None), ("resp_made_up", 404, "response_not_found")):
        answer = await fleet.one.http.get(url + response_id, headers=mine)
        assert answer.status_code == status
        exchange = f"{fleet.one.url}/exchanges/{answer.headers['x-request-id']}"
        told = (await fleet.one.http.get(exchange, headers=mine)).json()
        assert (told["status"], told["error"] and told["error"]["code"]) == (status, code)
        assert (len(told["attempts"]), bool(told["limits"])) == ((1, True) if status == 200 else (0, False))
        assert float(told["money"]["cost_usd"]) == 0
        assert (await fleet.one.http.get(exchange, headers=theirs)).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "..", "%2e%2e", "..%2f..%2fmodels", "resp_1%2f..%2f..%2ffiles", "resp_1;x=1", "resp_1%00", "resp_1%0d%0aX:%20y",
        "resp_1%23", "resp_1%3fx=1", "a" * 5000, "%ff", "*", "@evil", "%20", "resp_1%5c..", "\u00e9",
    ],
)  # fmt: skip
async def test_a_path_made_of_anything_but_an_id_goes_nowhere(path: str, fleet: Fleet) -> None:
    key = await fleet.one.mint()
    for rest in ("", "/input_items", "/cancel"):
        method = "POST" if rest == "/cancel" else "GET"
        head = f"{method} /v1/responses/{path}{rest} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        answer = await raw(fleet.one.address, (head + "content-length: 0\r\nconnection: close\r\n\r\n").encode())
        assert answer[9:12] in (b"404", b"400", b"405"), answer
    assert not fleet.calls


async def test_queries_are_those_of_the_api(fleet: Fleet) -> None:
    key = await fleet.one.mint()
    headers = {"authorization": f"Bearer {key}"}
    async with sdk(fleet.one, key) as client:
        kept = (await client.responses.create(model="gpt", input="hi")).id
    calls = fleet.calls
    url = f"{fleet.one.url}/v1/responses/{kept}"
    for query, code in (
        ("stream=true", "stream_not_supported"), ("api-version=1", "bad_request"), ("limit=1%26x=2", "bad_request"),
        ("after=../x", "bad_request"), ("&".join(f"limit={n}" for n in range(200)), "bad_request"),
    ):  # fmt: skip
        answer = await fleet.one.http.get(f"{url}?{query}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), query
    assert fleet.calls == calls
    assert (await fleet.one.http.get(f"{url}?stream=false", headers=headers)).status_code == 200
    assert (await fleet.one.http.put(url, headers=headers)).status_code == 405
    assert (await fleet.one.http.get(url.replace("/v1/", "/"), headers=headers)).status_code == 200
    assert (await fleet.one.http.get(url)).status_code == 401


async def test_azure_has_its_own_paths(tmp_path: Path) -> None:
    account = Account(PROVIDER_KEY)
    async with serve(account) as url:
        own = {"provider": "azure", "base_url": url, "api_version": "2025-04-01-preview"}
        top = {"models": [{"name": "gpt", "deployments": [deployment(url) | own]}]}
        async with served(tmp_path, url, top=top) as gateway, sdk(gateway, await gateway.mint()) as client:
            first = await client.responses.create(model="gpt", input="hi")
            await client.responses.create(model="gpt", input="on", previous_response_id=first.id)
            await client.responses.input_items.list(first.id, limit=2)
            await client.responses.delete(first.id)
    kept = first.id.rpartition("_g")[0]
    version = "api-version=2025-04-01-preview"
    assert [asked.target for asked in account.asked] == [
        f"/openai/responses?{version}",
        f"/openai/responses?{version}",
        f"/openai/responses/{kept}/input_items?{version}&limit=2",
        f"/openai/responses/{kept}?{version}",
    ]
    assert all(asked.headers["api-key"] == PROVIDER_KEY for asked in account.asked)


async def test_the_encryption_key_outlives_a_master_key(tmp_path: Path) -> None:
    account, ids = Account(PROVIDER_KEY), []
    async with serve(account) as url:
        models = [{"name": "gpt", "deployments": [deployment(url)]}]
        for secret in ("one-encryption-key-0123", "one-encryption-key-0123", "another-encryption-key-0123"):
            top = {"models": models, "store": {"encryption_key": secret}}
            async with served(tmp_path, url, top=top) as gateway, sdk(gateway, MASTER) as client:
                previous: Any = {"previous_response_id": ids[-1]} if ids else {}
                if secret.startswith("another"):
                    with pytest.raises(openai.NotFoundError):
                        await client.responses.create(model="gpt", input="hi", **previous)
                else:
                    ids.append((await client.responses.create(model="gpt", input="hi", **previous)).id)


async def test_they_count_on_request_limits(fleet: Fleet) -> None:
    key = await fleet.one.mint(rpm_limit=2)
    async with sdk(fleet.one, key) as client:
        kept = await client.responses.create(model="gpt", input="hi")
        await client.responses.retrieve(kept.id)
        with pytest.raises(openai.RateLimitError):
            await client.responses.retrieve(kept.id)


async def test_without_authentication_ids_outlive_the_process(tmp_path: Path) -> None:
    account = Account(PROVIDER_KEY)
    async with serve(account) as url:
        top = {"auth": "none", "models": [{"name": "gpt", "deployments": [deployment(url)]}]}
        ids = []
        for _ in range(2):
            async with served(tmp_path, url, top=top) as gateway, httpx2.AsyncClient(trust_env=False) as http:
                previous = {"previous_response_id": ids[-1]} if ids else {}
                answer = await http.post(
                    f"{gateway.url}/v1/responses", json={"model": "gpt", "input": "hi", **previous}
                )
                assert answer.status_code == 200, answer.text
                ids.append(answer.json()["id"])
    assert account.asked[-1].body["previous_response_id"] == ids[0].rpartition("_g")[0]
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
