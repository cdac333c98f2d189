"""The deployments that may serve one request, in levels: the asked-for group by `order`, then its fallbacks. Pure.

Neighbours: `catalog` makes them, Budget prices all of them, `plan` goes through the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidecar.routing.level import as_level
from sidecar.types import Deployment

Levels = tuple[tuple[Deployment, ...], ...]
_KEPT = 64
_NO_WAYS: Mapping[str, Levels] = MappingProxyType({})


def levels_of(deployments: Iterable[Deployment]) -> Levels:
    """By group, in the order they come, then by `order`."""
    groups: dict[str, list[Deployment]] = {}
    for deployment in deployments:
        groups.setdefault(deployment.group, []).append(deployment)
    return tuple(level for members in groups.values() for level in _by_order(members))


def _by_order(members: Sequence[Deployment]) -> Iterable[tuple[Deployment, ...]]:
    for order in sorted({d.order for d in members}):
        yield tuple(d for d in members if d.order == order)


@dataclass(slots=True)
class Try:
    """A step of a plan: whom to ask, after which wait."""

    deployment: Deployment
    wait_s: float = 0.0


class Candidates(tuple[Deployment, ...]):
    """All of them once, so it is the tuple everybody else reads. `levels` are the usual way, `ways` what is tried
    instead after an error of a kind (context_window, content_policy). `lone`: the first step of any plan, if this is
    one place without limits or tags."""

    levels: Levels
    ways: Mapping[str, Levels]
    has_limits: bool
    has_tags: bool
    tags: frozenset[str]
    lone: Try | None
    own: Deployment
    """One of the asked-for group, also where none of it is left: all of other groups are fallbacks."""
    parts: dict[str, Candidates]
    noted: tuple[Any, ...] | None = None
    """What records of exchanges keep of them, made once by whoever does."""

    @classmethod
    def of(
        cls, groups: Sequence[Sequence[Deployment]], ways: Mapping[str, Sequence[Sequence[Deployment]]] = _NO_WAYS
    ) -> Candidates:
        """`groups`: the asked-for one first. Each group is levels of its own, also if two are of one wildcard."""
        levels = _levels(groups)
        others = {kind: _levels(found) for kind, found in ways.items() if found}
        return cls._made(levels, others, groups[0][0])

    @classmethod
    def _made(cls, levels: Levels, ways: Mapping[str, Levels], own: Deployment) -> Candidates:
        every: dict[tuple[str, str], Deployment] = {}
        for way in (levels, *ways.values()):
            for level in way:
                for deployment in level:
                    every.setdefault((deployment.deployment_id, deployment.model), deployment)
        levels = tuple(map(as_level, levels))
        ways = {kind: tuple(map(as_level, found)) for kind, found in ways.items()}
        made = cls(every.values())
        made.levels, made.ways = levels, {kind: found for kind, found in ways.items() if found}
        made.own = own
        made.has_limits = any(not d.limits.is_empty for d in made)
        made.tags = frozenset(tag for d in made for tag in d.tags)
        made.has_tags = bool(made.tags)
        is_lone = len(made) == 1 and not made.has_limits and not made.has_tags
        made.lone = Try(made[0]) if is_lone else None
        made.parts = {}
        return made

    def only(self, keeps: Callable[[Deployment], bool], name: str = "") -> Candidates:
        """Those that `keeps` says yes to; kept under `name`, if it has one, for it always says the same."""
        found = self.parts.get(name) if name else None
        if found is None:
            if all(map(keeps, self)):
                found = self
            else:
                ways = {kind: _kept(way, keeps) for kind, way in self.ways.items()}
                found = self._made(_kept(self.levels, keeps), ways, self.own)
            if name:
                self.parts[name] = found
        return found

    def for_tags(self, tags: Sequence[str], own: Sequence[str] = ()) -> Candidates:
        """Those a request with these tags may use, of a key with its `own`. One that carries a tag serves only requests
        that have one of its tags; where any deployment has one of the request's, only such serve it: a region is left
        for no fallback, and a key's for no tag its client adds."""
        bound = self.tags.intersection(own)
        asked = self.tags.intersection(tags) - bound

        def serves(deployment: Deployment) -> bool:
            if bound or asked:
                has = deployment.tags
                return not (bound and bound.isdisjoint(has)) and not (asked and asked.isdisjoint(has))
            return not deployment.tags

        # Who asks chooses the tags: not all there can be are kept.
        name = "\0".join(["tags", *sorted(bound), "", *sorted(asked)]) if len(self.parts) < _KEPT else ""
        return self.only(serves, name)


def _levels(groups: Sequence[Sequence[Deployment]]) -> Levels:
    return tuple(level for members in groups for level in _by_order(members))


def _kept(levels: Levels, keeps: Callable[[Deployment], bool]) -> Levels:
    found = (tuple(filter(keeps, level)) for level in levels)
    return tuple(level for level in found if level)
