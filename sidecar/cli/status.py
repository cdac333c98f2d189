"""`sidecar status`: how the running gateway is, who runs its jobs, and when each ran."""

from __future__ import annotations

from typing import Any

from sidecar.cli.api import DEFAULT_URL, Api, JsonOption, KeyOption, UrlOption, print_fields, print_json, print_table


def status(url: UrlOption = DEFAULT_URL, master_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """How the running gateway is: database, store, sinks, and its background jobs."""
    api = Api(url, master_key)
    found = api.get("/status")
    if as_json:
        print_json(found)
        return
    process, leader = api.member(found, "process"), found.get("leader")
    database, store, journal = (api.member(found, name) for name in ("database", "store", "journal"))
    fields = {
        "version": found.get("version"),
        "process": f"{process['host']}:{process['pid']}, since {_short(process['started_at'])}",
        "leader": f"{leader['holder']}, since {_short(leader['since'])}" if leader else "nobody",
        "database": f"{database['kind']}, {database['state']}",
        "limits": f"{store['kind']}, {store['state']}",
        "rows waiting": "yes" if database["failed_shippings"] else None,
        "journal": f"{journal['state']}, {journal['refused']} rows refused",
    }
    fields |= {f"sink {sink['sink']}": f"{sink['dropped']} dropped" for sink in found.get("sinks", [])}
    print_fields(fields)
    columns = ("job", "state", "last run", "next run", "runs", "failures", "last error")
    print_table(columns, [_row(job) for job in api.member(found, "jobs")])


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    why = job["why"] or job["last_error"] or ""
    times = (_short(job["last_run"]), _short(job["next_run"]))
    return (job["name"], job["state"], *times, str(job["runs"]), str(job["failures"]), why)


def _short(instant: str | None) -> str:
    """Without the zone, which is UTC."""
    return instant[:19].replace("T", " ") if instant else ""
