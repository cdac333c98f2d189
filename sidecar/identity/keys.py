"""Who calls with this key? Memory, then the shared cache, then the database; each older than allowed is asked again.

`tokens.py` knows what a key looks like, `row.py` what is stored, `table.py` reads the database. Rules: the database
being down is never a wrong key (503, not 401); a lookup that began before a revocation never writes the old key back;
and no row, wherever it was kept, is used past `hard_age_s` after the database gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from typing import Literal, Protocol

from sidecar.errors import AuthenticationError, PermissionDeniedError, UnavailableError
from sidecar.identity.deadline import Deadline
from sidecar.identity.row import CachedRow, StoredKey, dump, load
from sidecar.identity.shared_cache import SharedCache
from sidecar.identity.tokens import digest_of, hash_key, is_plausible, mask_key, new_key
from sidecar.tasks import end
from sidecar.types import Identity, Principal, Secret

__all__ = ["MASTER_KEY_HASH", "KeySource", "Keys", "hash_key", "mask_key", "new_key"]

MASTER_KEY_HASH = "master"
"""Stands where a key's hash stands. The real hash of a master key a person chose could be guessed from."""

NEVER = float("inf")

Fault = Literal[
    "unknown", "blocked", "expired", "team_blocked", "member_blocked", "user_blocked", "organization_blocked"
]  # fmt: skip
_FLOORS = 10_000
_Name = tuple[str, str]


_ABOVE_KEYS = frozenset({"team", "member", "user", "organization", "budget"})
_NOT_ABOVE_KEYS = frozenset({"end_user", "tag", "model", "spend", "prompt"})


class KeySource(Protocol):
    """Where rows come from; raises `UnavailableError` when it cannot tell."""

    async def resolve(self, key_hash: str) -> StoredKey | None: ...


class _Entry:
    """A usable key in memory. `usable_until` is the nearer of freshness and expiry, so the fast path compares once.
    `named`: whose changes concern it."""

    __slots__ = ("dead_at", "identity", "loaded_at", "named", "usable_until")

    def __init__(
        self, identity: Identity, loaded_at: float, usable_until: float, dead_at: float, named: tuple[_Name, ...]
    ) -> None:
        self.identity = identity
        self.named = named
        self.loaded_at = loaded_at
        self.usable_until = usable_until
        self.dead_at = dead_at


class _Flight:
    """One lookup in progress, shared by all who ask for the same key. Void: a revocation overtook it."""

    __slots__ = ("is_void", "task")

    def __init__(self) -> None:
        self.is_void = False
        self.task: asyncio.Task[Identity | Fault] | None = None


class Keys:
    """Looks up virtual keys and the master key. Follows a `feed.ChangeFeed`: while that is read, what is in memory is
    as good as the database.

    fresh_s: without the feed a row is used this long without asking again – how soon a revocation is noticed at most.
    hard_age_s: while the database does not answer, a known key stays usable until its row is this old, then 503.
    deadline_s: bound of one database lookup. max_entries: bound of the known keys, and of the refused ones, in memory.
    """

    def __init__(
        self,
        table: KeySource | None,
        *,
        master_key: Secret | None,
        clock: Callable[[], float],
        shared_cache: SharedCache | None = None,
        fresh_s: float = 1.0,
        hard_age_s: float = 30.0,
        deadline_s: float = 2.0,
        retry_s: float = 0.5,
        max_entries: int = 10_000,
    ) -> None:
        self._table = table
        self._clock = clock
        self._shared = shared_cache
        self._fresh_s = fresh_s
        self._hard_age_s = max(hard_age_s, fresh_s)
        self._deadline = Deadline(deadline_s)
        self._retry_s = retry_s
        self._max_entries = max_entries
        self._known: dict[bytes, _Entry] = {}
        self._below: dict[_Name, set[bytes]] = {}
        self._refused: dict[bytes, tuple[Fault, float, float]] = {}
        self._flights: dict[bytes, _Flight] = {}
        self._failed_at: float | None = None
        self._fed_until = 0.0
        self._seq = 0
        self._floor = 0
        self._floors: dict[_Name, int] = {}
        self._principals: dict[tuple[str, str], Principal] = {}
        self._master_digest = digest_of(master_key.reveal()) if master_key else b""
        self._master = Identity(
            key_hash=MASTER_KEY_HASH, key_alias=MASTER_KEY_HASH, key_name=MASTER_KEY_HASH, role="proxy_admin"
        )

    def cached(self, token: str) -> Identity | None:
        """The caller if memory knows it and the knowledge is fresh; `None` means: `await lookup(token)`."""
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        entry = self._known.get(digest)
        if entry is not None:
            now = self._clock()
            if now < entry.usable_until or (now < self._fed_until and now < entry.dead_at):
                # A clock set back makes `loaded_at` lie ahead: then nothing is fresh.
                return entry.identity if entry.loaded_at <= now else None
            return None
        if self._master_digest and compare_digest(digest, self._master_digest):
            return self._master
        return None

    async def lookup(self, token: str) -> Identity:
        """The caller. Raises `AuthenticationError` (missing, malformed, unknown, `key_blocked`, `expired_key`) or
        `UnavailableError` when the stores cannot tell."""
        identity = self.cached(token)
        if identity is not None:
            return identity
        if not token:
            raise AuthenticationError(
                "The gateway got no API key. Send one as 'Authorization: Bearer sk-...'.", code="missing_api_key"
            )
        if not is_plausible(token):
            raise AuthenticationError(
                "The gateway refused the API key: it is malformed. Keys start with 'sk-'; send it as "
                "'Authorization: Bearer sk-...'."
            )
        return await self._resolve(digest_of(token))

    def forget(self, key_hash: str) -> None:
        """Drops what this process knows of a key; a lookup in progress starts over. Call after each change."""
        try:
            digest = bytes.fromhex(key_hash)
        except ValueError:
            return
        self._drop(digest)
        self._refused.pop(digest, None)
        flight = self._flights.pop(digest, None)
        if flight is not None:
            flight.is_void = True

    async def revoke(self, key_hash: str) -> bool:
        """`forget`, here and in the shared cache. False: the shared cache could not be told, so other replicas may
        use the old row until it is `hard_age_s` old."""
        self.forget(key_hash)
        if self._shared is None:
            return True
        try:
            return await self._shared.delete(key_hash)
        finally:
            self.forget(key_hash)  # a lookup begun meanwhile may have met the old row in the shared cache

    # feed.Follower

    def changed(self, seq: int, kind: str, subject_id: str) -> None:
        """Told by the feed: rows read before this change are not to be used any more."""
        self._seq = seq
        if kind in _NOT_ABOVE_KEYS:
            return
        if kind != "key" and kind not in _ABOVE_KEYS:
            self.forget_all(seq)
            return
        name = (kind, subject_id)
        self._floors.pop(name, None)
        if len(self._floors) >= _FLOORS:
            self._floor = max(self._floor, self._floors.pop(next(iter(self._floors))))
        self._floors[name] = seq
        if kind == "key":
            self.forget(subject_id)
            return
        for digest in self._below.get(name, frozenset()).copy():
            self._drop(digest)
        self._void_flights()  # whom they will find above is not known yet

    def forget_all(self, seq: int) -> None:
        self._seq = self._floor = seq
        self._floors.clear()
        self._known.clear()
        self._below.clear()
        self._refused.clear()
        self._principals.clear()
        self._void_flights()

    def _void_flights(self) -> None:
        flights, self._flights = self._flights, {}
        for flight in flights.values():
            flight.is_void = True

    def confirm(self, at: float) -> None:
        self._fed_until = at + self._fresh_s

    async def aclose(self) -> None:
        """Ends lookups in progress."""
        tasks = [flight.task for flight in self._flights.values()]
        self._flights.clear()
        await end(tasks)

    async def _resolve(self, digest: bytes) -> Identity:
        while True:
            now = self._clock()
            refused = self._refused.get(digest)
            if refused is not None and refused[1] <= now < refused[2]:
                raise _refusal(refused[0])
            flight = self._flights.get(digest)
            spare = self._spare(digest, now)
            if spare is not None and self._failed_at is not None:
                # The database is known to be failing: answer from memory; one lookup finds out whether it is back.
                if flight is None and not self._failed_at <= now < self._failed_at + self._retry_s:
                    self._start(digest)
                return spare
            if flight is None:
                flight = self._start(digest)
            assert flight.task is not None
            outcome = await asyncio.shield(flight.task)
            if flight.is_void:
                continue
            if isinstance(outcome, str):
                raise _refusal(outcome)
            return outcome

    def _spare(self, digest: bytes, now: float) -> Identity | None:
        """A known key that is no longer fresh but neither expired nor past its hard age."""
        entry = self._known.get(digest)
        return entry.identity if entry is not None and entry.loaded_at <= now < entry.dead_at else None

    def _start(self, digest: bytes) -> _Flight:
        flight = self._flights[digest] = _Flight()
        flight.task = asyncio.get_running_loop().create_task(self._fly(digest, flight))
        flight.task.add_done_callback(_collect)
        return flight

    async def _fly(self, digest: bytes, flight: _Flight) -> Identity | Fault:
        try:
            return await self._load(digest, flight)
        finally:
            if self._flights.get(digest) is flight:
                del self._flights[digest]

    async def _load(self, digest: bytes, flight: _Flight) -> Identity | Fault:
        if self._table is None:
            return "unknown"
        key_hash = digest.hex()
        began_at = self._clock()
        # While changes cannot be followed, an old row cannot be told from a good one: the database is asked first.
        is_blind = began_at >= self._fed_until > 0
        cached = None if is_blind else await self._from_shared(key_hash, began_at)
        if cached is None:
            began_at, seq = self._clock(), self._seq
            try:
                stored = await self._deadline.run(self._table.resolve(key_hash))
            except (UnavailableError, TimeoutError) as error:
                self._failed_at = self._clock()
                spare = None if flight.is_void else self._spare(digest, self._failed_at)
                if spare is not None:
                    return spare
                cached = await self._from_shared(key_hash, began_at) if is_blind else None
                if cached is not None:
                    return self._keep(digest, cached, began_at, flight)
                raise UnavailableError(
                    "The gateway cannot check API keys now: its database does not answer. Try again shortly.",
                    code="key_store_unavailable",
                    retry_after_s=1.0,
                ) from error
            self._failed_at = None
            if stored is None:
                return self._refuse(digest, "unknown", began_at, flight)
            cached = CachedRow(began_at, seq, stored)
            if self._shared is not None and not flight.is_void:
                await self._shared.set(key_hash, dump(cached))
        return self._keep(digest, cached, began_at, flight)

    async def _from_shared(self, key_hash: str, now: float) -> CachedRow | None:
        if self._shared is None:
            return None
        data = await self._shared.get(key_hash)
        cached = load(data, key_hash=key_hash) if data else None
        if cached is None or not cached.loaded_at <= now + self._fresh_s < cached.loaded_at + self._hard_age_s:
            return None
        floors = (self._floors.get(name, 0) for name in (("key", key_hash), *cached.stored.named()))
        if cached.seq < max(self._floor, *floors):
            return None  # read before a change we know of
        if cached.seq > self._seq and now < self._fed_until:
            return None  # we know all there are: it is of a database that was put back since, or a moment ahead of us
        return cached

    def _keep(self, digest: bytes, cached: CachedRow, began_at: float, flight: _Flight) -> Identity | Fault:
        row, now = cached.stored.row, self._clock()
        if row.blocked:
            return self._refuse(digest, "blocked", began_at, flight)
        for above in cached.stored.above:
            if above.blocked:
                return self._refuse(digest, f"{above.kind}_blocked", began_at, flight)  # type: ignore[arg-type]
        expires_at = NEVER if row.expires_at is None else row.expires_at
        if expires_at <= now:
            return self._refuse(digest, "expired", began_at, flight)
        identity = cached.stored.identity(tuple(map(self._shared_one, cached.stored.principals())))
        if flight.is_void:
            return identity
        dead_at = min(cached.loaded_at + self._hard_age_s, expires_at)
        # A shared row is as fresh as its reading, or as the last change we were told of.
        known_at = began_at if self._fed_until <= 0 else max(cached.loaded_at, self._fed_until - self._fresh_s)
        usable_until = min(min(known_at, began_at) + self._fresh_s, dead_at)
        before = self._drop(digest)
        if before is not None and before.identity == identity:
            identity = before.identity  # unchanged: what others derived from it stays valid
        self._refused.pop(digest, None)
        while len(self._known) >= max(self._max_entries, 1):
            self._drop(next(iter(self._known)))  # the longest not refreshed
        named = cached.stored.named()
        self._known[digest] = _Entry(identity, min(cached.loaded_at, began_at), usable_until, dead_at, named)
        for name in named:
            self._below.setdefault(name, set()).add(digest)
        return identity

    def _drop(self, digest: bytes) -> _Entry | None:
        entry = self._known.pop(digest, None)
        if entry is not None:
            for name in entry.named:
                below = self._below.get(name)
                if below is not None:
                    below.discard(digest)
                    if not below:
                        del self._below[name]
        return entry

    def _shared_one(self, principal: Principal) -> Principal:
        """The same value once in memory, however many keys are below it."""
        key = (principal.kind, principal.principal_id)
        known = self._principals.get(key)
        if known == principal:
            return known
        if len(self._principals) >= self._max_entries:
            self._principals.clear()
        self._principals[key] = principal
        return principal

    def _refuse(self, digest: bytes, fault: Fault, began_at: float, flight: _Flight) -> Fault:
        if not flight.is_void:
            self._drop(digest)
            self._refused.pop(digest, None)
            while len(self._refused) >= max(self._max_entries, 1):
                del self._refused[next(iter(self._refused))]
            self._refused[digest] = (fault, began_at, began_at + self._fresh_s)
        return fault


def _collect(task: asyncio.Task[Identity | Fault]) -> None:
    # All who waited may have left; a failure nobody asked about any more is not an event.
    if not task.cancelled():
        task.exception()


def _refusal(fault: Fault) -> AuthenticationError | PermissionDeniedError:
    if fault.endswith("_blocked"):
        who = fault.removesuffix("_blocked").replace("member", "team member")
        return PermissionDeniedError(
            f"The gateway refused the request: the {who} of this API key is blocked. Ask your administrator.",
            code=fault,
        )
    if fault == "blocked":
        return AuthenticationError(
            "The gateway refused the API key: it is blocked. Ask your administrator to unblock it.", code="key_blocked"
        )
    if fault == "expired":
        return AuthenticationError(
            "The gateway refused the API key: it has expired. Ask your administrator for a new one.", code="expired_key"
        )
    return AuthenticationError("The gateway refused the API key: it is unknown. Check that it was copied whole.")
