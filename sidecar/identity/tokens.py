"""The text form of virtual keys: minting, hashing, masking, and telling junk from a plausible key.

Pure: the source of random bytes is an argument. Neighbours: `keys.py` looks keys up, `table.py` stores their hashes.
Rule: only the hash and the mask of a key are ever stored, logged or shown; the key itself is shown once, when minted.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256

KEY_BYTES = 32

_PLAUSIBLE = re.compile(r"sk-[A-Za-z0-9_-]{4,128}", re.ASCII)  # ours have 43; imported ones may be short
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


def hash_key(token: str) -> str:
    """SHA-256 of the key, 64 lower-case hex digits. A key holds 256 random bits: neither salt nor stretching helps."""
    return digest_of(token).hex()


def digest_of(token: str) -> bytes:
    """The same hash as 32 raw bytes. Any `str` hashes, also one no header could carry."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def new_key(random_bytes: Callable[[int], bytes]) -> str:
    """A fresh key: `sk-` and 43 URL-safe characters that hold `random_bytes(32)`."""
    drawn = random_bytes(KEY_BYTES)
    if len(drawn) != KEY_BYTES:
        raise ValueError(f"the random source gave {len(drawn)} bytes instead of {KEY_BYTES}")
    return "sk-" + urlsafe_b64encode(drawn).rstrip(b"=").decode("ascii")


def mask_key(token: str) -> str:
    """`sk-...abcd`: enough to recognise a key by, useless to call with."""
    return f"sk-...{token[-4:]}"


def is_plausible(token: str) -> bool:
    """False for text that cannot be a virtual key, so that junk costs no query."""
    return _PLAUSIBLE.fullmatch(token) is not None


def is_hash(text: str) -> bool:
    """True for what `hash_key` gives."""
    return _HASH.fullmatch(text) is not None
