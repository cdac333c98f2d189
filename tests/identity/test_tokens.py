"""Keys as text: minted with 256 bits, hashed, masked; junk is told apart without a query."""

import hashlib
import re
import secrets

import pytest

from sidecar.identity.tokens import hash_key, is_hash, is_plausible, mask_key, new_key


def test_a_new_key_holds_all_256_bits_of_the_source() -> None:
    assert new_key(lambda n: b"\xff" * n) == "sk-" + "_" * 42 + "8"
    assert len({new_key(secrets.token_bytes) for _ in range(1000)}) == 1000
    for _ in range(100):
        assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", new_key(secrets.token_bytes))


def test_a_short_random_source_is_an_error_not_a_weak_key() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        new_key(lambda n: b"\0" * (n - 1))


def test_the_hash_is_sha_256_in_hex() -> None:
    assert hash_key("sk-abc") == hashlib.sha256(b"sk-abc").hexdigest()
    assert is_hash(hash_key("sk-\ud800"))


def test_the_mask_shows_four_characters() -> None:
    key = new_key(secrets.token_bytes)
    assert mask_key(key) == f"sk-...{key[-4:]}"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "sk-",
        "sk-abc",
        "SK-" + "a" * 43,
        "pk-" + "a" * 43,
        "sk-" + "a" * 200,
        "sk-" + "a" * 42 + "\n",
        "sk-" + "a" * 42 + "é",
        "sk-" + "a" * 42 + "١",
        "sk-" + "a" * 20 + " " + "a" * 22,
        "sk-' or 1=1 --aaaaaaaaaaaaaaaaaaaaaaa",
        "x" * 10_000_000,
    ],
)
def test_junk_is_not_plausible(token: str) -> None:
    assert not is_plausible(token)


def test_minted_keys_and_those_of_the_reference_are_plausible() -> None:
    assert is_plausible(new_key(secrets.token_bytes))
    assert is_plausible("sk-" + secrets.token_urlsafe(16))
    assert is_plausible("sk-1234"), "short ones made by hand, as many are"
