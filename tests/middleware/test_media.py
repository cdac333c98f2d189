"""URLs of files towards a provider that takes bytes only: fetched by a collaborator, or refused in plain words."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sidecar.errors import BadRequestError
from sidecar.middleware.translate import TranslateMiddleware
from sidecar.translate.provider import Media
from sidecar.types import Deployment
from tests.asgi import call
from tests.middleware.stack import Speaker

pytestmark = pytest.mark.anyio
BEDROCK = Deployment(
    "b", "gpt", "bedrock", "anthropic.claude-sonnet-4-5", "http://127.0.0.1:9", options={"region": "x"}
)
PICTURE = "https://example.com/cat.png"
BODY = {
    "model": "gpt",
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}],
}
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


async def test_the_bytes_behind_a_url_go_to_the_provider() -> None:
    asked: list[tuple[str, ...]] = []

    async def fetch(urls: tuple[str, ...]) -> Mapping[str, Media]:
        asked.append(urls)
        return {PICTURE: Media("image/png", PNG)}

    speaker = Speaker()
    await call(TranslateMiddleware(speaker, deployment=BEDROCK, fetch_media=fetch), BODY)
    assert asked == [(PICTURE,)]
    assert b"iVBORw0KGgo" in speaker.bodies[0]
    assert b"example.com" not in speaker.bodies[0]


async def test_a_url_that_may_not_be_fetched_is_a_400_and_nothing_is_sent() -> None:
    async def fetch(urls: tuple[str, ...]) -> Mapping[str, Media]:
        raise BadRequestError("The gateway refused to fetch from example.com.", code="media_not_fetched")

    speaker = Speaker()
    answer = await call(TranslateMiddleware(speaker, deployment=BEDROCK, fetch_media=fetch), BODY)
    assert (answer.status, answer.error["code"]) == (400, "media_not_fetched")
    assert not speaker.bodies


async def test_without_a_fetcher_the_refusal_says_what_to_do() -> None:
    speaker = Speaker()
    answer = await call(TranslateMiddleware(speaker, deployment=BEDROCK), BODY)
    assert (answer.status, answer.error["code"]) == (400, "media_not_fetched")
    assert "data: URL" in answer.error["message"]
    assert not speaker.bodies
