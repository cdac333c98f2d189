"""What the management API accepts, without a server: strict JSON, exact money, faults that name the field."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.admin.bodies import parse_object, validated
from sidecar.admin.requests import DeleteKeys, GenerateKey, ListKeys, NameKey, UpdateKey
from sidecar.errors import BadRequestError
from sidecar.identity.tokens import hash_key


def generate(text: str) -> GenerateKey:
    return validated(GenerateKey, parse_object(text.encode()))


@pytest.mark.parametrize(
    ("text", "usd"),
    [
        ("0", "0"),
        ("0.1", "0.1"),
        ("1e-9", "0.000000001"),
        ("1.10", "1.1"),
        ("2.5E1", "25"),
        ("9000000", "9000000"),
        ('"0.30"', "0.3"),
        ('"12"', "12"),
        ("123456.123456789", "123456.123456789"),
    ],
)
def test_money_is_read_exactly_as_written(text: str, usd: str) -> None:
    assert generate(f'{{"max_budget": {text}}}').max_budget == Decimal(usd)


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-0.000000001",
        "1e-10",
        "9000000.1",
        "1e300",
        '"1e999"',
        "true",
        '"NaN"',
        '"Infinity"',
        '"-inf"',
        '"ten"',
        '""',
        '"1_000"',
        '"١"',
        "[]",
        "{}",
        '"' + "9" * 100 + '"',
    ],
)
def test_bad_money_is_refused_and_named(text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        generate(f'{{"max_budget": {text}}}')
    assert (caught.value.param, caught.value.code) == ("max_budget", "invalid_field")
    assert caught.value.message.startswith("'max_budget': has to ")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("rpm_limit", "-1"),
        ("rpm_limit", "0"),
        ("rpm_limit", "1.5"),
        ("rpm_limit", "1.0"),
        ("rpm_limit", "true"),
        ("rpm_limit", '"5"'),
        ("tpm_limit", "1" + "0" * 30),
        ("max_parallel_requests", "[]"),
        ("models", '"gpt-4o"'),
        ("models", "[1]"),
        ("models", '[""]'),
        ("models", '["' + "m" * 256 + '"]'),
        ("key_alias", "1"),
        ("key_alias", '""'),
        ("key_alias", '"' + "a" * 256 + '"'),
        ("metadata", "[]"),
        ("metadata", '"{}"'),
        ("metadata", '{"a": "' + "x" * 70_000 + '"}'),
        ("metadata", '{"a":' * 40 + "1" + "}" * 40),
        ("metadata", '{"a": 1e999}'),
        ("metadata", '{"a": "\\ud800"}'),
        ("metadata", '{"\\u0000": 1}'),
        ("user_id", '"\\u0000"'),
        ("team_id", "{}"),
        ("blocked", '"yes"'),
        ("blocked", "1"),
        ("duration", '""'),
        ("duration", '"soon"'),
        ("duration", '"-5d"'),
        ("duration", '"0s"'),
        ("duration", "30"),
        ("duration", '"99999999999999d"'),
        ("duration", '"' + "9" * 31 + 'd"'),
        ("budget_duration", '"fortnight"'),
        ("duration", '"999999999w"'),
        ("budget_duration", '"2mo"'),
        ("budget_duration", '"0d"'),
        ("budget_duration", '"1d; drop table keys"'),
    ],
)
def test_bad_fields_are_refused_and_named(field: str, text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        generate(f'{{"{field}": {text}}}')
    assert (caught.value.param or "").startswith(field)
    assert field in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"1" * 10_000 + b"}",
        b'{"a": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 50_000,
    ],
)
def test_a_body_that_is_no_plain_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_object(body)


def test_an_unknown_field_is_named_with_those_that_exist() -> None:
    with pytest.raises(BadRequestError) as caught:
        generate('{"max_budgett": 1}')
    assert caught.value.param == "max_budgett"
    assert "max_budget," in caught.value.message


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    secret = "sk-" + "s" * 43
    for body in (
        f'{{"{secret}": 1}}',
        f'{{"duration": "{secret[:30]}"}}',
        f'{{"max_budget": "{secret}"}}',
        f'{{"blocked": "{secret}"}}',
    ):
        with pytest.raises(BadRequestError) as caught:
            generate(body)
        assert secret[:12] not in str(caught.value.body())
    with pytest.raises(BadRequestError) as caught:
        validated(NameKey, {"key": secret + "!"})
    assert secret[:12] not in str(caught.value.body())


def test_a_key_is_named_by_itself_or_by_its_hash() -> None:
    token = "sk-" + "a" * 43
    for name in (token, hash_key(token)):
        assert validated(UpdateKey, {"key": name}).key == hash_key(token)
        assert validated(DeleteKeys, {"keys": [name]}).keys == [hash_key(token)]
        assert validated(ListKeys, {"key": name}).key == hash_key(token)
    for junk in ("", "x", hash_key(token).upper(), 5, None):
        with pytest.raises(BadRequestError) as caught:
            validated(UpdateKey, {"key": junk})
        assert caught.value.param == "key"


def test_null_and_absent_are_told_apart() -> None:
    assert generate('{"rpm_limit": null}').model_fields_set == {"rpm_limit"}
    assert generate("{}").model_fields_set == set()


def test_fractions_in_metadata_stay_numbers() -> None:
    assert generate('{"metadata": {"a": 1.5, "b": [0.1]}}').metadata == {"a": 1.5, "b": [0.1]}
