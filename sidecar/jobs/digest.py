"""The weekly and the monthly report: what was spent in the week or month before, to a Slack-compatible webhook.

The sums are `spend/reports.py`'s, so they are those of `sidecar spend report`. Weeks begin on Mondays, in the time zone
of the budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Literal

from sidecar.jobs.leader import Leader
from sidecar.jobs.post import Slack, dollars, plain
from sidecar.limits.windows import bounds
from sidecar.spend.ledger import Ledger
from sidecar.spend.reports import Report, Sums, key_aliases, report
from sidecar.types import Budget

TOP = 5
Period = Literal["week", "month"]
_DURATION = {"week": "1w", "month": "1mo"}


class Digest:
    def __init__(
        self, period: Period, *, ledger: Ledger, slack: Slack, zone: tzinfo, clock: Callable[[], float]
    ) -> None:
        self._period = period
        self._ledger = ledger
        self._slack = slack
        self._zone = zone
        self._clock = clock

    async def run(self, leader: Leader) -> None:
        """Raises `JobError` if the webhook did not take it, `UnavailableError`."""
        text = await self.text()
        await leader.confirm()
        await self._slack.say(text)

    async def text(self) -> str:
        now = self._clock()
        this, _ = self._window(now)
        since, until = self._window(this - 1)
        before, _ = self._window(since - 1)
        parts = {
            by: await report(self._ledger, by=[by], since_at=since, until_at=until, limit=TOP)
            for by in ("team", "model", "key")
        }
        last = await report(self._ledger, by=["model"], since_at=before, until_at=since, limit=1)
        keys = [line.names[0] for line in parts["key"].lines]
        aliases = await key_aliases(self._ledger, keys)
        total = parts["model"].total
        days = f"{self._day(since)} to {self._day(until - 1)}"
        lines = [
            f"*Spend of the {self._period} from {days}: {dollars(total.cost_nano)}*"
            f" ({_change(total.cost_nano, last.total.cost_nano, self._period)})",
            _facts(total),
        ]
        for by, found in parts.items():
            if found.lines and any(line.names[0] for line in found.lines):
                lines += [f"*By {by}*", *_lines(by, found, aliases)]
        return "\n".join(lines)

    def _window(self, at: float) -> tuple[float, float]:
        return bounds(Budget(0, _DURATION[self._period]), at, self._zone)

    def _day(self, instant: float) -> str:
        return datetime.fromtimestamp(instant, self._zone).date().isoformat()


def _lines(by: str, found: Report, aliases: dict[str, str]) -> list[str]:
    lines = []
    for line in found.lines:
        name = line.names[0]
        if by == "key":
            name = aliases.get(name, name[:12])
        lines.append(f"• {plain(name) or f'no {by}'}: {dollars(line.sums.cost_nano)}")
    if found.next_offset is not None:
        rest = found.total.cost_nano - sum(line.sums.cost_nano for line in found.lines)
        lines.append(f"• all others: {dollars(rest)}")
    return lines


def _facts(total: Sums) -> str:
    facts = [f"{total.attempts:,} calls of providers", f"{total.failed:,} failed"]
    if total.unpriced:
        facts.append(f"{total.unpriced:,} without a known price")
    uncertain = total.estimated_nano + total.unknown_nano
    if uncertain:
        facts.append(f"{dollars(uncertain)} of it not certain")
    return ", ".join(facts)


def _change(now: int, before: int, period: str) -> str:
    if not before:
        return f"nothing the {period} before"
    percent = round((now - before) * 100 / before)
    return f"{percent:+d} % against {dollars(before)} the {period} before"
