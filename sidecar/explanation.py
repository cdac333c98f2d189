"""What a request would become at its provider, without sending it: method, URL, headers, body, and every loss.

Neighbours: `cli/explain.py` and `admin/transform.py`, which show it; `translate.losses`, which collects what
translators tell. Rules: no I/O, no hold, no row, no trial of a pausing deployment; a credential is `***` wherever it
would stand.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from sidecar.admit import cap_at, output_cap, price_of
from sidecar.errors import BadRequestError, BudgetExceededError, NotFoundError, RefusedError
from sidecar.routing.affinity import prefix_of
from sidecar.routing.candidates import Candidates
from sidecar.routing.catalog import Catalog
from sidecar.routing.router import Router
from sidecar.spend.cost import worst_case_nano
from sidecar.translate.content import type_of_name
from sidecar.translate.estimate import estimate_input_tokens, requested_choices, requested_output_tokens
from sidecar.translate.losses import Loss, told
from sidecar.translate.provider import Call, Media, Provider, UpstreamRequest
from sidecar.translate.registry import get_provider
from sidecar.types import Deployment, Headers, Identity
from sidecar.upstream.auth import auth_of, static_headers
from sidecar.upstream.base import FixedHeaders, HttpRequest, head_bytes

MASK = "***"
SHORTEST_SECRET = 8
_SECRET_NAME = re.compile(
    r"^(api|access|secret|private)?_?key$|token$|secret|passw|credential|authorization", re.IGNORECASE
)
_MADE_WHEN_SENT = {
    "aws": "AWS signature, made when sent",
    "google": "Google's token, asked for when sent",
    "azure": "Entra's token, asked for when sent",
    "databricks": "Databricks' token, asked for when sent",
}


class OutputRules(Protocol):
    """How outputs are capped; an `AdmissionPolicy` is one."""

    @property
    def parts(self) -> Collection[str]: ...
    @property
    def has_global_budget(self) -> bool: ...
    @property
    def no_max_tokens(self) -> str: ...
    @property
    def default_output_tokens(self) -> int: ...


class Explainer:
    """`policy`: whose budgets cap outputs; `retries`: how many more deployments are asked if the first cannot say it;
    `fetches_media`: whether the gateway fetches what URLs point to."""

    def __init__(
        self,
        catalog: Catalog,
        router: Router,
        *,
        policy: OutputRules | None = None,
        retries: int = 2,
        fetches_media: bool = True,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._policy = policy
        self._retries = retries
        self._fetches_media = fetches_media
        self._clock = clock
        self._draw = draw

    def explain(
        self,
        payload: Mapping[str, Any],
        raw: bytes,
        caller: Identity,
        *,
        tags: Sequence[str] = (),
        shows_places: bool = True,
    ) -> dict[str, Any]:
        """`shows_places`: whether hosts that are the operator's own are for this reader. Raises `RefusedError` as the
        call itself would: an unknown model, none for these tags, a field nobody takes."""
        model = str(payload["model"])
        candidates = self._catalog.candidates(model, caller)
        cap = self._output_cap(payload, raw, caller, candidates)
        if candidates.has_tags:
            candidates = candidates.for_tags(tags, caller.tags)
        if not candidates:
            raise NotFoundError(
                f"The gateway has no deployment of '{model[:128]}' for requests with these tags.",
                code="no_deployment_for_tags",
            )
        listed = [self._listed(one, level) for level, of in enumerate(candidates.levels, 1) for one in of]
        by_place = {(row["deployment"], row["model"]): row for row in listed}
        for kind, levels in candidates.ways.items():
            others = [self._listed(one, level, on=kind) for level, of in enumerate(levels, 1) for one in of]
            listed += [row for row in others if (row["deployment"], row["model"]) not in by_place]
        refusal: RefusedError | None = None
        for deployment in self._order(payload, candidates)[: self._retries + 1]:
            row = by_place[deployment.deployment_id, deployment.model]
            try:
                shown = self._explained(deployment, payload, raw, cap, shows_places=shows_places)
            except RefusedError as error:
                row["refusal"] = error.body()["error"]
                refusal = refusal or error
                if not isinstance(error, BadRequestError) or error.code != "unsupported_parameter":
                    break
                continue
            row["is_chosen"] = True
            return {"model": model, **shown, "candidates": listed}
        assert refusal is not None
        raise refusal

    def _order(self, payload: Mapping[str, Any], candidates: Candidates) -> list[Deployment]:
        """Whom Route would ask, in turn, if those before refused the request as it is."""
        now = self._clock()
        found: list[Deployment] = []
        for level in candidates.levels:
            left = list(level)
            while left:
                pool = self._router.health.healthy(left, now) or left
                home = prefix_of(payload) if self._router.is_sticky(left[0].group) else None
                chosen = self._router.choose(pool, now, self._draw, home)
                left.remove(chosen)
                found.append(chosen)
        return found

    def _listed(self, deployment: Deployment, level: int, on: str | None = None) -> dict[str, Any]:
        """`on`: the kind of error after which it is asked, if it is not in the usual way."""
        is_healthy = bool(self._router.health.healthy([deployment], self._clock()))
        return {
            "deployment": deployment.deployment_id,
            "group": deployment.group,
            "provider": deployment.provider,
            "model": deployment.model,
            "level": level,
            "weight": deployment.weight,
            "state": "healthy" if is_healthy else "pausing",
            "is_chosen": False,
            **({} if on is None else {"on": on}),
        }

    def _output_cap(
        self, payload: Mapping[str, Any], raw: bytes, caller: Identity, candidates: Sequence[Deployment]
    ) -> int | None:
        """What Budget would bound the output to, with room for all of it; as `admit.admit` does."""
        policy = self._policy
        if policy is None or "budgets" not in policy.parts or requested_output_tokens(payload) is not None:
            return None
        if not (policy.has_global_budget or caller.has_budget):
            return None
        tokens_in = estimate_input_tokens(payload, len(raw), candidates)
        choices, default = requested_choices(payload), policy.default_output_tokens
        hold = max(
            worst_case_nano(price_of(d), tokens_in, (d.max_output_tokens or default) * choices) for d in candidates
        )
        if not hold and all(price_of(d).status != "unpriced" for d in candidates):
            return None
        if policy.no_max_tokens == "refuse":
            raise BudgetExceededError(
                "The gateway refused the request: under a budget it needs 'max_tokens'. Add it.",
                code="max_tokens_required",
                param="max_tokens",
            )
        return output_cap(candidates, tokens_in, hold, choices, default)

    def _explained(
        self, deployment: Deployment, payload: Mapping[str, Any], raw: bytes, cap: int | None, *, shows_places: bool
    ) -> dict[str, Any]:
        provider = get_provider(deployment.provider)
        if cap is not None:
            cap = cap_at(deployment, cap)
        call = Call(
            payload=payload,
            raw=raw,
            model=deployment.model,
            edits={} if cap is None else {"output_cap": cap},
            is_stream=payload.get("stream") is True,
            exchange_id="explained",
            now=self._clock(),
            params=deployment.params,
            drop_params=deployment.drop_params,
            allowed_params=deployment.allowed_params,
            max_output_tokens=deployment.max_output_tokens,
            options=deployment.options,
        )
        with told() as notes:
            wanted = provider.needs(call)
            if wanted and not self._fetches_media:
                raise BadRequestError(
                    "The gateway refused the request: this provider takes no URLs of images or files, and the gateway "
                    "does not fetch them. Send the bytes as a data: URL.",
                    code="media_not_fetched",
                )
            call.media = {url: _stand_in(url) for url in wanted}
            request = provider.request(call)
        losses = [
            Loss("dropped", name, "by policy: this provider or model has no such thing") for name in request.dropped
        ]
        if cap is not None:
            losses.append(Loss("capped", "max_tokens", f"{cap}, for a budget bounds it; less if less is left"))
        losses += notes
        losses += [Loss("media", url, "fetched by the gateway when sent; a stand-in is shown") for url in wanted]
        return {
            "deployment": deployment.deployment_id,
            "provider": deployment.provider,
            "request": {
                "method": "POST",
                "url": _url(deployment, provider, request, shows_place=shows_places),
                "headers": _headers(deployment, provider, request, is_stream=call.is_stream),
                "body": _body(deployment, payload, request),
            },
            "losses": [asdict(loss) for loss in losses],
        }


def _stand_in(url: str) -> Media:
    return Media(type_of_name(url.partition("?")[0]) or "image/png", b"fetched when sent")


def _url(deployment: Deployment, provider: Provider, request: UpstreamRequest, *, shows_place: bool) -> str:
    base = deployment.base_url
    if not shows_place and base != provider.base_url(deployment.options):
        base = f"{base.partition('://')[0]}://{MASK}"
    return base + request.path + (f"?{request.query}" if request.query else "")


def _body(deployment: Deployment, payload: Mapping[str, Any], request: UpstreamRequest) -> Any:
    """Without the deployment's credentials, and without what its `params` call one."""
    text = request.body.decode("utf-8", "replace")
    for secret in (deployment.api_key, *deployment.credentials.values()):
        if secret and len(secret.reveal()) >= SHORTEST_SECRET:
            text = text.replace(json.dumps(secret.reveal())[1:-1], MASK)
    body = json.loads(text)
    own = deployment.params.keys() - payload.keys()
    return {name: _masked(value, name) if name in own else value for name, value in body.items()}


def _masked(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {inner: _masked(found, inner) for inner, found in value.items()}
    if isinstance(value, list):
        return [_masked(found, name) for found in value]
    return MASK if isinstance(value, str) and _SECRET_NAME.search(name) else value


def _headers(
    deployment: Deployment, provider: Provider, request: UpstreamRequest, *, is_stream: bool
) -> dict[str, str]:
    """As they go out, in order; whatever the operator gave is masked, for most of it is secret."""
    given: Headers = [*deployment.headers, *static_headers(auth_of(deployment, provider), deployment.api_key)]
    masked = {name.lower(): MASK for name, _ in given}
    head = head_bytes(
        HttpRequest(
            method="POST", scheme="https", host="-", port=443, target=b"/", headers=request.headers, body=request.body,
            is_stream=is_stream, fixed=FixedHeaders([(name, MASK.encode()) for name in masked]),
        )
    )  # fmt: skip
    shown: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(": ")
        if colon and name.lower() != "host":
            shown[name.lower()] = MASK if name.lower().encode() in masked else value
    if not deployment.api_key and provider.keyless:
        shown["authorization"] = f"{MASK} ({_MADE_WHEN_SENT[provider.keyless]})"
    elif deployment.api_key and auth_of(deployment, provider) == "ibm":
        shown["authorization"] = f"{MASK} (IBM's token, asked for when sent)"
    return shown
