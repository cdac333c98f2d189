"""Secrets at rest: AES-256-GCM under a key derived from the configured one.

Neighbours: whoever stores a credential (`config/stored.py`). Each text is bound to what it belongs to, so that a row's
secret moved to another row does not open. `cryptography` is imported when a secret is first sealed or opened.
"""

from __future__ import annotations

import base64
import os
from typing import Any

from sidecar.types import Secret

_VERSION = b"\x01"
_NONCE_BYTES = 12


class VaultError(Exception):
    """The text was not sealed with this key for this owner, or is damaged."""


class Vault:
    """`key` is any secret text of at least 16 characters; all replicas need the same."""

    def __init__(self, key: Secret) -> None:
        if len(key.reveal()) < 16:
            raise ValueError("the encryption key has to have at least 16 characters")
        self._key = key
        self._cipher: Any = None

    def seal(self, text: str, *, owner: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._aead().encrypt(nonce, text.encode(), owner.encode())
        return base64.urlsafe_b64encode(_VERSION + nonce + sealed).decode("ascii")

    def open(self, sealed: str, *, owner: str) -> str:
        """Raises `VaultError`."""
        from cryptography.exceptions import InvalidTag

        try:
            data = base64.b64decode(sealed.encode("ascii"), altchars=b"-_", validate=True)
            if data[:1] != _VERSION:
                raise VaultError("sealed by another version")
            nonce, rest = data[1 : 1 + _NONCE_BYTES], data[1 + _NONCE_BYTES :]
            return str(self._aead().decrypt(nonce, rest, owner.encode()), "utf-8")
        except (ValueError, InvalidTag) as error:
            raise VaultError("sealed with another key, or damaged") from error

    def _aead(self) -> Any:
        if self._cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            derived = HKDF(SHA256(), 32, salt=None, info=b"sidecar vault 1").derive(self._key.reveal().encode())
            self._cipher = AESGCM(derived)
        return self._cipher
