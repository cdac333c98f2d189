"""Model group names to deployments: aliases and fallbacks closed over, access checked. Pure.

Neighbours: config builds it, Budget prices from it, Route dispatches only to its members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sidecar.errors import NotFoundError, PermissionDeniedError
from sidecar.types import Deployment, Identity

_NONE: frozenset[str] = frozenset()


class Catalog:
    """Table of model groups; replaced as a whole or not at all (`adopt`). A group named `openai/*` serves every
    `openai/<model>`."""

    def __init__(
        self,
        deployments: Iterable[Deployment],
        *,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        aliases: Mapping[str, str] | None = None,
        prices: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        groups: dict[str, list[Deployment]] = {}
        for deployment in deployments:
            groups.setdefault(deployment.group, []).append(deployment)
        self._groups = {name: tuple(members) for name, members in groups.items()}
        self._wildcards = sorted((n for n in self._groups if n.endswith("*")), key=len, reverse=True)
        self._fallbacks = {name: tuple(names) for name, names in (fallbacks or {}).items()}
        self._aliases = dict(aliases or {})
        self._access_groups = {
            name: frozenset(members[0].access_groups)
            for name, members in self._groups.items()
            if members[0].access_groups
        }
        self._prices = prices or {}
        """provider -> upstream model -> price, for wildcard groups: a table made at load, never grown by clients."""

    def adopt(self, other: Catalog) -> None:
        """Become `other`. Who was given deployments before keeps them to the end of the exchange."""
        self._groups, self._wildcards = other._groups, other._wildcards
        self._fallbacks, self._aliases = other._fallbacks, other._aliases
        self._prices, self._access_groups = other._prices, other._access_groups

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
        """By which names limits may mean it: as asked, what an alias stands for, the wildcard's group it is in."""
        name = self._aliases.get(model, model)
        found = (model,) if name == model else (model, name)
        if name not in self._groups:
            for pattern in self._wildcards:
                if len(name) >= len(pattern) and name.startswith(pattern[:-1]) and "*" not in name:
                    return (*found, pattern)
        return found

    def group(self, model: str) -> tuple[Deployment, ...]:
        """The deployments of one name; empty if there is none."""
        name = self._aliases.get(model, model)
        found = self._groups.get(name)
        if found is not None and not name.endswith("*"):
            return found
        for pattern in self._wildcards:
            prefix = pattern[:-1]
            if name.startswith(prefix) and len(name) > len(prefix) and "*" not in name:
                return tuple(self._concrete(d, name[len(prefix) :]) for d in self._groups[pattern])
        return ()

    def _concrete(self, deployment: Deployment, rest: str) -> Deployment:
        model = deployment.model.replace("*", rest) if "*" in deployment.model else deployment.model
        price = self._prices.get(deployment.provider, {}).get(model, deployment.price)
        return replace(deployment, model=model, price=price)

    def candidates(self, model: str, identity: Identity) -> tuple[Deployment, ...]:
        """Deployments that may serve `model` for this caller: its own group first, then its fallbacks', each once.

        Raises NotFoundError for an unknown name, PermissionDeniedError for one the caller may not use; neither tells
        which names exist.
        """
        if not identity.may_call(model, self.access_groups(model)):
            raise PermissionDeniedError(
                f"The gateway refused the request: this key may not call the model '{model[:128]}'. "
                "Ask for one that GET /v1/models lists, or have the key changed.",
                code="model_access_denied",
                param="model",
            )
        own = self.group(model)
        if not own:
            raise NotFoundError(
                f"The gateway does not know the model '{model[:128]}'. GET /v1/models lists those you may use.",
                code="model_not_found",
                param="model",
            )
        if not self._fallbacks:
            return own
        found = list(own)
        seen = {model, self._aliases.get(model, model), own[0].group}
        queue = list(self._fallbacks.get(model) or self._fallbacks.get(own[0].group, ()))
        while queue:
            name = queue.pop(0)
            if name in seen:
                continue
            seen.add(name)
            if identity.may_call(name, self.access_groups(name)):
                found.extend(self.group(name))
            queue.extend(self._fallbacks.get(name, ()))
        return tuple(found)
