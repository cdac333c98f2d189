"""What the plan asks about deployments, answered from board, health and the strategy of the group. Pure.

Neighbours: `plan` asks, RouteMiddleware holds one per process and reports how attempts went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sidecar.routing.affinity import at_home
from sidecar.routing.board import Board
from sidecar.routing.health import Health
from sidecar.routing.hedging import Hedges
from sidecar.routing.level import Level
from sidecar.routing.strategies import STRATEGIES, Strategy
from sidecar.types import Deployment


class Router:
    """`strategies` by group name, `strategy` for all others: names out of `strategies.STRATEGIES`. `affinity`: requests
    with the same beginning stay together; `affinities` says it of single groups."""

    def __init__(
        self,
        *,
        strategy: str = "weighted",
        strategies: Mapping[str, str] | None = None,
        affinity: bool = False,
        affinities: Mapping[str, bool] | None = None,
        health: Health | None = None,
        board: Board | None = None,
        hedges: Hedges | None = None,
    ) -> None:
        self.health = health if health is not None else Health()
        self.board = board if board is not None else Board()
        self.hedges = hedges if hedges is not None else Hedges()
        self.default: Strategy = STRATEGIES[strategy]
        self.by_group = {group: STRATEGIES[name] for group, name in (strategies or {}).items()}
        self._affinity = affinity
        self._affinities = dict(affinities or {})
        self.is_ever_sticky = affinity or any(self._affinities.values())

    def is_sticky(self, group: str) -> bool:
        return self._affinities.get(group, self._affinity) if self._affinities else self._affinity

    def strategy_of(self, group: str) -> str:
        strategy = self.by_group.get(group, self.default)
        return next(name for name, function in STRATEGIES.items() if function is strategy)

    def choose(
        self, deployments: Sequence[Deployment], now: float, draw: Callable[[], float], home: int | None = None
    ) -> Deployment:
        strategy = self.default
        if home is not None or self.by_group:
            group = deployments[0].group
            if home is not None and self.is_sticky(group):
                return at_home(home, deployments, self.board)
            strategy = self.by_group.get(group, strategy)
        return strategy(deployments, self.board, now, draw)

    def keep(self, deployments: Iterable[Deployment]) -> None:
        """Forget all others: the configuration changed."""
        ids = {d.deployment_id for d in deployments}
        self.board.keep(ids)
        self.health.keep(ids)


class Here:
    """The plan's view: `tokens` the request may use, `home` of its beginning, `takes` places that were asked for."""

    __slots__ = ("_draw", "_router", "healthy", "home", "is_counting", "probe", "takes", "tokens")

    def __init__(
        self,
        router: Router,
        draw: Callable[[], float],
        *,
        tokens: int = 0,
        home: int | None = None,
        is_counting: bool = True,
    ) -> None:
        self._router = router
        self._draw = draw
        self.healthy = router.health.healthy
        self.probe = router.health.probe
        self.tokens = tokens
        self.home = home
        self.is_counting = is_counting
        self.takes = 0

    def has_room(self, deployments: Sequence[Deployment], now: float) -> bool:
        """Each of them, for certain."""
        level = deployments if type(deployments) is Level else Level(deployments)
        board = self._router.board
        if board.full_until > now and board.is_any_full(level, now):
            return False
        return not self.is_counting or board.has_room(level, self.tokens, now)

    def room_in_s(self, deployment: Deployment, now: float) -> float:
        board = self._router.board
        if not self.is_counting:  # a store counts for all processes; here only what it said last is known
            return max(board.of(deployment).full_until - now, 0.0)
        return board.room_in_s(deployment, self.tokens, now)

    def choose(self, deployments: Sequence[Deployment], now: float) -> Deployment:
        router = self._router
        if self.home is None and not router.by_group:
            return router.default(deployments, router.board, now, self._draw)
        return router.choose(deployments, now, self._draw, self.home)
