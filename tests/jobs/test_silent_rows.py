"""The row of a silent owner's hold goes to everybody whose counters hold it."""

from __future__ import annotations

from sidecar.identity.row import member_id
from sidecar.jobs.ticker import silent_record
from sidecar.limits.claims import SilentHold


def test_the_row_names_whom_the_windows_name_whatever_their_ids() -> None:
    windows = (
        "key:abc:1d:17000", "team:a:b:life:0", f"member:{member_id('a:b', 'u:1d:5')}:30d:9", "user:u:1d:5:1mo:3",
        "organization:o:life:0", "end_user:e:life:0", "tag:t:1:1h:5", "tag:z:life:0", "global:all:1d:17000",
    )  # fmt: skip
    record = silent_record(SilentHold("x", 500, 12.5, "abc", windows))
    assert (record.team_id, record.user_id, record.organization_id) == ("a:b", "u:1d:5", "o")
    assert (record.end_user_id, record.tags, record.key_hash) == ("e", ("t:1", "z"), "abc")
    assert (record.status, record.cost_nano, record.at, record.budget_keys) == ("unknown", 500, 12.5, windows)
