"""Processes that try to lead and, leading, run a job each second.

`python -m tests.jobs.contender` makes one for each line of its input, `[FILE, URL, REDIS, LEASE]`, and prints its id: a
fork, since an interpreter of its own would spend half a second of CPU on imports. Each run appends lines to FILE:
process id, what, an instant by
the clock all processes share, the second in which the run began. The job takes a while and checks the lead before each
line, as jobs do before an effect; the instant is from before the check, so at it this process surely led, however long
it stands still between check and line.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time

import aiosqlite  # noqa: F401 - before the forks
import asyncpg  # noqa: F401
import redis.asyncio  # noqa: F401
import sqlalchemy.dialects.postgresql.asyncpg
import sqlalchemy.dialects.sqlite.aiosqlite
import sqlalchemy.ext.asyncio  # noqa: F401

from sidecar.db import Database
from sidecar.identity.table import Store
from sidecar.jobs.leader import Leader, holder_name
from sidecar.jobs.locks import open_lock
from sidecar.jobs.runner import Job, Runner
from sidecar.jobs.state import JobTable
from sidecar.metrics import Metrics

_PR_SET_PDEATHSIG = 1


async def main(path: str, url: str, redis_url: str, lease_s: float) -> None:
    store, holder = Store(Database(url)), holder_name()
    out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(leader: Leader, what: str, second: int) -> None:
        at = time.monotonic_ns()
        leader.check()
        os.write(out, f"{os.getpid()} {what} {at} {second}\n".encode())

    async def run(leader: Leader) -> None:
        second = int(time.time())
        say(leader, "run", second)
        for _ in range(8):
            await asyncio.sleep(0.05)
            say(leader, "step", second)
        say(leader, "done", second)

    lock = open_lock(store, redis_url=redis_url or None, holder=holder, lease_s=lease_s, clock=time.time)
    job = Job("tick", "ticks", lambda now: int(now) + 1.0, run, limit_s=5.0, retry_s=1.0)
    runner = Runner(
        [job], Leader(lock, lease_s=lease_s), JobTable(store), Metrics().jobs,
        holder=holder, clock=time.time, tick_s=0.05, first_s=0.0,
    )  # fmt: skip
    await runner.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        made = os.fork()
        if not made:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # and who makes them ends with the test
            asyncio.run(main(*json.loads(line)))
        os.write(1, b"%d\n" % made)
