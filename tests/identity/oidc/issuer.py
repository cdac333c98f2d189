"""An identity provider on a real socket that can be told to misbehave, its keys, and tokens made with them."""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "gateway"
JSON = "application/json"


@cache
def private_key(algorithm: str, number: int = 0) -> Any:
    """The same key for the same arguments, made once per run."""
    if algorithm[:2] in ("RS", "PS"):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    return ec.generate_private_key(curves[algorithm])


def jwk_of(key: Any, algorithm: str, kid: str | None, **more: Any) -> dict[str, Any]:
    made = dict(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True))
    made.pop("key_ops", None)
    named = {} if kid is None else {"kid": kid}
    return {**made, "use": "sig", "alg": algorithm, **named, **more}


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: bytes | dict[str, Any], payload: bytes | dict[str, Any], algorithm: str, key: Any) -> str:
    """A token of any header and payload, signed as `algorithm` says, whatever the header says."""
    parts = [json.dumps(part).encode() if isinstance(part, dict) else part for part in (header, payload)]
    signed = ".".join(map(b64, parts))
    return signed + "." + b64(jwt.get_algorithm_by_name(algorithm).sign(signed.encode(), key))


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


@dataclass
class Answer:
    body: bytes
    status: int = 200
    kind: str = JSON
    headers: str = ""
    length: int | None = None


class IssuerServer:
    """`keys` is what it publishes. `faults[path]` replaces an answer; while `gate` is clear all answers wait."""

    def __init__(self, now: Callable[[], float], scheme: str) -> None:
        self.now = now
        self.scheme = scheme
        self.url = ""
        self.seen: list[Seen] = []
        self.keys: list[dict[str, Any]] = []
        self.faults: dict[str, Callable[[], Answer]] = {}
        self.document: dict[str, Any] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.open = 0
        self.most_open = 0
        self._arrived = asyncio.Condition()
        self.publish("k1")

    def publish(self, kid: str | None, algorithm: str = "ES256", number: int = 0, **more: Any) -> None:
        self.keys.append(jwk_of(private_key(algorithm, number), algorithm, kid, **more))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good token; `None` takes a claim away."""
        made = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": self.now() - 1, "exp": self.now() + 3600}
        return {name: value for name, value in {**made, **changes}.items() if value is not None}

    def token(
        self,
        algorithm: str = "ES256",
        kid: str | None = "k1",
        number: int = 0,
        header: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        head = {"alg": algorithm, "typ": "JWT", **({} if kid is None else {"kid": kid}), **(header or {})}
        return sign(head, self.claims(**claims), algorithm, private_key(algorithm, number))

    def count(self, path: str) -> int:
        return sum(1 for one in self.seen if one.path == path)

    async def asked(self, times: int) -> None:
        """Returns once that many requests have arrived."""
        async with asyncio.timeout(60), self._arrived:
            await self._arrived.wait_for(lambda: len(self.seen) >= times)

    def answer(self, request: Seen) -> Answer:
        if request.path in self.faults:
            return self.faults[request.path]()
        if request.path == "/.well-known/openid-configuration":
            return Answer(json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/jwks", **self.document}).encode())
        if request.path in ("/jwks", "/openid/v1/jwks"):
            return Answer(json.dumps({"keys": self.keys}).encode(), kind="application/jwk-set+json")
        if request.path == "/introspect":
            return Answer(json.dumps(self.tokens.get(request.form.get("token", ""), {"active": False})).encode())
        return Answer(b"{}", 404)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
                request = Seen(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
                async with self._arrived:
                    self.seen.append(request)
                    self._arrived.notify_all()
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                await self.gate.wait()
                self.open -= 1
                answer = self.answer(request)
                length = len(answer.body) if answer.length is None else answer.length
                writer.write(
                    f"HTTP/1.1 {answer.status} X\r\ncontent-type: {answer.kind}\r\ncontent-length: {length}\r\n"
                    f"{answer.headers}\r\n".encode()
                    + answer.body
                )
                await writer.drain()
                if answer.length is not None:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def issuer_server(now: Callable[[], float], tls: ssl.SSLContext | None = None) -> AsyncIterator[IssuerServer]:
    server = IssuerServer(now, "http" if tls is None else "https")
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    host = "127.0.0.1" if tls is None else "localhost"
    server.url = f"{server.scheme}://{host}:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        server.gate.set()
        listening.close()
        await asyncio.sleep(0)
