"""A process that tries to lead and, leading, runs a job each second.

`python -m tests.jobs.contender FILE URL REDIS LEASE`. Each run appends lines to FILE: process id, what, the instant by
the clock all processes share, the second in which the run began. The job takes a while and checks the lead before each
line, as jobs do before an effect.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from sidecar.db import Database
from sidecar.identity.table import Store
from sidecar.jobs.leader import Leader, holder_name
from sidecar.jobs.locks import open_lock
from sidecar.jobs.runner import Job, Runner
from sidecar.jobs.state import JobTable
from sidecar.metrics import Metrics


async def main(path: str, url: str, redis_url: str | None, lease_s: float) -> None:
    store, holder = Store(Database(url)), holder_name()
    out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(what: str, second: int) -> None:
        os.write(out, f"{os.getpid()} {what} {time.monotonic_ns()} {second}\n".encode())

    async def run(leader: Leader) -> None:
        leader.check()
        second = int(time.time())
        say("run", second)
        for _ in range(8):
            await asyncio.sleep(0.05)
            leader.check()
            say("step", second)
        say("done", second)

    lock = open_lock(store, redis_url=redis_url, holder=holder, lease_s=lease_s, clock=time.time)
    job = Job("tick", "ticks", lambda now: int(now) + 1.0, run, limit_s=5.0, retry_s=1.0)
    runner = Runner(
        [job], Leader(lock, lease_s=lease_s), JobTable(store), Metrics().jobs,
        holder=holder, clock=time.time, tick_s=0.05, first_s=0.0,
    )  # fmt: skip
    await runner.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] or None, float(sys.argv[4])))
