"""Names of fields are the client's own words: they go into a header, a row and a record as far as these can bear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar import ObserveMiddleware, SpendMiddleware, TranslateMiddleware
from sidecar.errors import BadRequestError
from sidecar.records import Records
from sidecar.translate.fields import LONGEST_SHOWN, MOST_SHOWN
from tests.asgi import call
from tests.middleware.stack import BODY, DEPLOYMENT, Rows, Speaker, metrics

pytestmark = pytest.mark.anyio

MISTRAL = replace(DEPLOYMENT, provider="mistral", drop_params=True)


async def dropped(names: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """What the header and the row name."""
    rows = Rows()
    stack = SpendMiddleware(TranslateMiddleware(Speaker(), deployment=MISTRAL), recorder=rows, deployment=MISTRAL)
    answer = await call(stack, BODY | dict.fromkeys(names, 1))
    assert answer.status == 200
    return answer.headers["x-sidecar-dropped"].split(","), rows.records[0].dropped


async def test_a_dropped_fields_name_begins_no_header_and_writes_no_colour() -> None:
    in_header, in_row = await dropped(["x\r\nset-cookie: a=b", "\x1b[31m", "größe"])
    assert sorted(in_header) == [r"\x1b[31m", r"gr\xf6\xdfe", r"x\r\nset-cookie: a=b"]
    assert list(in_row) == in_header


async def test_endless_names_and_endlessly_many_are_cut() -> None:
    in_header, in_row = await dropped(["k" * 1_000_000])
    assert in_header == list(in_row) == ["k" * LONGEST_SHOWN + "..."]
    in_header, in_row = await dropped([f"made_up_{number}" for number in range(MOST_SHOWN + 7)])
    assert (len(in_row), in_row[-1], in_header) == (MOST_SHOWN + 1, "and 7 more", list(in_row))


async def test_a_refused_fields_name_is_neither_answered_nor_remembered_whole() -> None:
    records = Records()
    deployment = replace(MISTRAL, drop_params=False)
    translate = TranslateMiddleware(Speaker(), deployment=deployment)
    stack = ObserveMiddleware(translate, metrics=metrics(), records=records)
    answer = await call(stack, BODY | {"k" * 1_000_000: 1})
    assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert len(answer.body) < 10_000
    (shown,) = records.find(answer.headers["x-request-id"])
    assert len(shown["error"]["param"]) < 300


def test_a_refusal_quotes_no_more_than_it_has_to() -> None:
    error = BadRequestError("The gateway refused the request: " + "a" * 1_000_000, param="b" * 1_000_000)
    assert len(error.message) < 5_000
    assert len(error.param or "") < 300
