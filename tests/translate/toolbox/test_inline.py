"""What was fetched takes its URL's place, alike for every provider that takes bytes only; ids we make stay short."""

from __future__ import annotations

import base64
import uuid

import pytest

from sidecar.errors import BadRequestError
from sidecar.translate.chunks import call_id
from sidecar.translate.inline import inlined
from sidecar.translate.provider import Media
from sidecar.translate.signatures import MAX_OPENAI_ID

PNG = b"\x89PNG\r\n\x1a\n0000"
URL = "https://example.com/a"


def with_parts(*parts: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [*parts]}]}


def test_pictures_and_files_by_url_become_data_of_the_type_their_bytes_tell() -> None:
    media = {URL: Media("image/jpeg; q=1", PNG), URL + ".pdf": Media("application/pdf", b"%PDF-1.4")}
    payload = with_parts(
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "image_url", "image_url": URL},
        {"type": "file", "file": {"file_url": URL + ".pdf", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": URL + ".pdf"}},
        {"type": "file", "file": {"file_id": "f1"}},
        {"type": "text", "text": URL},
        "bare",
    )
    before = repr(payload)
    png = "data:image/png;base64," + base64.b64encode(PNG).decode()
    pdf = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.4").decode()
    assert inlined(payload, media)["messages"][1]["content"] == [
        {"type": "image_url", "image_url": {"url": png, "detail": "low"}},
        {"type": "image_url", "image_url": png},
        {"type": "file", "file": {"file_data": pdf, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": pdf}},
        {"type": "file", "file": {"file_id": "f1"}},
        {"type": "text", "text": URL},
        "bare",
    ]
    assert repr(payload) == before


def test_a_request_without_urls_is_the_same_object() -> None:
    for payload in (with_parts({"type": "image_url", "image_url": {"url": "data:,"}}), {"messages": 3}, {}):
        assert inlined(payload, {}) is payload


def test_a_url_that_was_not_fetched_is_refused_by_its_place() -> None:
    with pytest.raises(BadRequestError) as caught:
        inlined(with_parts({"type": "image_url", "image_url": {"url": URL}}), {})
    assert caught.value.param == "messages[1].content[0].image_url.url"


def test_the_id_of_a_call_without_one_is_the_same_again_and_short_enough_for_openai() -> None:
    exchange = str(uuid.uuid4())
    found = call_id(exchange, 0, 127)
    assert found == call_id(exchange, 0, 127)
    assert found != call_id(exchange, 1, 127)
    assert len(found) <= MAX_OPENAI_ID
    assert call_id("ex1", 3) == "call_ex1_3"
