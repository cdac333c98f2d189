"""Model group names to deployments: aliases and fallbacks closed over, access checked. Pure.

Neighbours: config builds it, Budget prices from it, Route dispatches only to its members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from sidecar.errors import NotFoundError, PermissionDeniedError
from sidecar.routing.candidates import Candidates
from sidecar.types import Deployment, Identity

K = TypeVar("K")
V = TypeVar("V")
_STEPS = (".", "..")
_NONE: frozenset[str] = frozenset()
_KEPT = 2048
"""Answers kept for names clients ask for (they choose them below a wildcard) and what their keys may call."""
GENERAL = "any"
Fallbacks = Mapping[str, Sequence[str]]
Ways = tuple[tuple[str, tuple[str, ...]], ...]
"""(kind of error, or `GENERAL`; names of groups in order)."""


class Catalog:
    """Table of model groups; replaced as a whole or not at all (`adopt`). A group named `openai/*` serves every
    `openai/<model>`.

    `fallbacks` are followed through; `default_fallbacks` serve groups that have none of their own. `fallbacks_on` gives
    others for a kind of error (context_window, content_policy), not followed further. `default_group` serves names
    nobody knows.
    """

    def __init__(
        self,
        deployments: Iterable[Deployment],
        *,
        fallbacks: Fallbacks | None = None,
        aliases: Mapping[str, str] | None = None,
        prices: Mapping[str, Mapping[str, object]] | None = None,
        default_fallbacks: Sequence[str] = (),
        fallbacks_on: Mapping[str, Fallbacks] | None = None,
        default_group: str | None = None,
    ) -> None:
        groups: dict[str, list[Deployment]] = {}
        for deployment in deployments:
            groups.setdefault(deployment.group, []).append(deployment)
        self._groups = {name: tuple(members) for name, members in groups.items()}
        self._wildcards = sorted((n for n in self._groups if n.endswith("*")), key=len, reverse=True)
        self._fallbacks = {name: tuple(names) for name, names in (fallbacks or {}).items()}
        self._default_fallbacks = tuple(default_fallbacks)
        self._fallbacks_on = {kind: dict(found) for kind, found in (fallbacks_on or {}).items() if found}
        self._has_fallbacks = bool(self._fallbacks or self._default_fallbacks or self._fallbacks_on)
        self._default_group = default_group
        self._aliases = dict(aliases or {})
        self._access_groups = {
            name: frozenset(members[0].access_groups)
            for name, members in self._groups.items()
            if members[0].access_groups
        }
        self._prices = prices or {}
        """provider -> upstream model -> price, for wildcard groups: a table made at load, never grown by clients."""
        self._concrete: dict[str, tuple[Deployment, ...]] = {}
        self._ways: dict[str, Ways] = {}
        self._candidates: dict[tuple[str, Ways], Candidates] = {}
        self.version = 0
        """Grows when the deployments change."""

    def adopt(self, other: Catalog) -> None:
        """Become `other`. Who was given deployments before keeps them to the end of the exchange."""
        version = self.version + 1
        self.__dict__.update(other.__dict__)
        self.version = version

    @property
    def names(self) -> tuple[str, ...]:
        """Group names as clients ask for them, aliases included."""
        return (*self._groups, *self._aliases)

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        return tuple(d for members in self._groups.values() for d in members)

    def access_groups(self, model: str) -> frozenset[str]:
        """The access groups a model is in; of a wildcard's models, the wildcard's."""
        if not self._access_groups:
            return _NONE
        found = self.group(model)
        return self._access_groups.get(found[0].group, _NONE) if found else _NONE

    def names_of(self, model: str) -> tuple[str, ...]:
        """By which names limits may mean it: as asked, what an alias or the default group stands for, the wildcard's
        group it is in."""
        name = self._aliases.get(model, model)
        found = (model,) if name == model else (model, name)
        if name not in self._groups:
            pattern = self._wildcard(name)
            if pattern is not None:
                return (*found, pattern)
            if self._default_group is not None and model != self._default_group:
                return (*found, *self.names_of(self._default_group))
        return found

    def group(self, model: str) -> tuple[Deployment, ...]:
        """The deployments of one name; empty if there is none."""
        name = self._aliases.get(model, model)
        found = self._groups.get(name)
        if found is not None and not name.endswith("*"):
            return found
        made = self._concrete.get(name)
        if made is not None:
            return made
        pattern = self._wildcard(name)
        if pattern is None:
            return ()
        made = tuple(self._made(d, name, name[len(pattern) - 1 :]) for d in self._groups[pattern])
        if any(part in _STEPS for d in made for part in d.model.split("/")):
            made = ()  # some providers' paths have the model in them, and the caller chooses none
        _room(self._concrete)[name] = made
        return made

    def _wildcard(self, name: str) -> str | None:
        """The most exact wildcard group that serves `name`."""
        if "*" not in name:
            for pattern in self._wildcards:
                if len(name) >= len(pattern) and name.startswith(pattern[:-1]):
                    return pattern
        return None

    def _made(self, deployment: Deployment, name: str, rest: str) -> Deployment:
        model = deployment.model.replace("*", rest) if "*" in deployment.model else deployment.model
        price = self._prices.get(deployment.provider, {}).get(model, deployment.price)
        return replace(deployment, model=model, price=price, called=name)

    def candidates(self, model: str, identity: Identity) -> Candidates:
        """Deployments that may serve `model` for this caller: its own group first, then its fallbacks', each once.

        Raises NotFoundError for an unknown name, PermissionDeniedError for one the caller may not use; neither tells
        which names exist.
        """
        name = model
        if self._default_group is not None and not self.group(model):
            name = self._default_group
        if not identity.may_call(name, self.access_groups(name)):
            raise PermissionDeniedError(
                f"The gateway refused the request: this key may not call the model '{model[:128]}'. "
                "Ask for one that GET /v1/models lists, or have the key changed.",
                code="model_access_denied",
                param="model",
            )
        ways: Ways = ()
        if self._has_fallbacks:
            ways = tuple(
                (kind, tuple(n for n in names if identity.may_call(n, self.access_groups(n))))
                for kind, names in self._ways_of(name)
            )
        found = self._candidates.get((name, ways))
        if found is not None:
            return found
        own = self.group(name)
        if not own:
            raise NotFoundError(
                f"The gateway does not know the model '{model[:128]}'. GET /v1/models lists those you may use.",
                code="model_not_found",
                param="model",
            )
        others = {kind: [self.group(n) for n in names] for kind, names in ways}
        found = Candidates.of([own, *others.pop(GENERAL, [])], others)
        _room(self._candidates)[name, ways] = found
        return found

    def _ways_of(self, model: str) -> Ways:
        """Every fallback of a group by kind of error, whoever asks."""
        found = self._ways.get(model)
        if found is not None:
            return found
        own = self.group(model)
        if not own:
            return ()
        meant = (model, self._aliases.get(model, model), own[0].group)

        def of(table: Fallbacks) -> Sequence[str]:
            return next((table[name] for name in meant if name in table), ())

        seen = set(meant)
        names: list[str] = []
        queue = list(of(self._fallbacks) or self._default_fallbacks)
        while queue:
            name = queue.pop(0)
            if name not in seen:
                seen |= {name, self._aliases.get(name, name)}
                names.append(name)
                queue.extend(self._fallbacks.get(name) or self._fallbacks.get(self._aliases.get(name, name), ()))
        ways = [(GENERAL, tuple(names))] if names else []
        ways += [(kind, tuple(others)) for kind, table in self._fallbacks_on.items() if (others := of(table))]
        made = _room(self._ways)[model] = tuple(ways)
        return made


def _room(table: dict[K, V]) -> dict[K, V]:
    """The table, emptied if it is full: what clients ask for never grows it past its bound."""
    if len(table) >= _KEPT:
        table.clear()
    return table
