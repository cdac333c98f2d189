"""A load generator as raw asyncio callbacks: prebuilt requests over keep-alive connections, closed loop or fixed rate.

    python -m bench.load PORT JSON        # JSON: {"head": …, "body": …, "connections": 64, "seconds": 5, "rate": null}
Prints one JSON line: requests, errors, seconds, p50_ms, p99_ms, cpu_share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque


class Client(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self.run = run
        self.buffer = b""
        self.sent_at = 0.0
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.run.ready(self)

    def ask(self, at: float) -> None:
        self.sent_at = at
        self.is_busy = True
        self.buffer = b""
        self.transport.write(self.run.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        at = head.find(b"content-length: ")
        if at >= 0:
            if len(buffer) < end + 4 + int(head[at + 16 :].split(b"\r\n", 1)[0]):
                return
        elif not buffer.endswith(b"0\r\n\r\n"):
            self.buffer = buffer[: end + 4] + buffer[-8:] if len(buffer) > end + 64 else buffer
            return
        self.is_busy = False
        self.run.done(self, b" 200 " in head[:16])

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_busy:
            self.run.errors += 1


class Run:
    def __init__(self, request: bytes, rate: float | None) -> None:
        self.request = request
        self.rate = rate
        self.times: list[float] = []
        self.errors = 0
        self.idle: deque[Client] = deque()
        self.queue: deque[float] = deque()
        self.is_over = False

    def ready(self, client: Client) -> None:
        self.idle.append(client)

    def done(self, client: Client, ok: bool) -> None:
        now = time.perf_counter()
        self.times.append(now - client.sent_at)
        self.errors += not ok
        if self.is_over:
            return
        if self.rate is None:
            client.ask(now)
        elif self.queue:
            client.ask(self.queue.popleft())
        else:
            self.idle.append(client)

    async def go(self, port: int, connections: int, seconds: float) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            await loop.create_connection(lambda: Client(self), "127.0.0.1", port)
        started, cpu = time.perf_counter(), time.process_time()
        if self.rate is None:
            while self.idle:
                self.idle.popleft().ask(time.perf_counter())
            await asyncio.sleep(seconds)
        else:
            due = started
            while due < started + seconds:
                now = time.perf_counter()
                while due <= now:
                    # Latency counts from when the request was due: a slow answer delays nobody unseen.
                    if self.idle:
                        self.idle.popleft().ask(due)
                    else:
                        self.queue.append(due)
                    due += 1 / self.rate
                await asyncio.sleep(0.0005)
        self.is_over = True
        elapsed = time.perf_counter() - started
        share = (time.process_time() - cpu) / elapsed
        times = sorted(self.times) or [0.0]
        return {
            "requests": len(self.times),
            "errors": self.errors,
            "seconds": elapsed,
            "p50_ms": times[len(times) // 2] * 1000,
            "p99_ms": times[int(len(times) * 0.99)] * 1000,
            "cpu_share": share,
        }


async def main() -> None:
    port, plan = int(sys.argv[1]), json.loads(sys.argv[2])
    body = plan["body"].encode()
    head = plan["head"] + f"content-length: {len(body)}\r\n\r\n"
    run = Run(head.encode() + body, plan.get("rate"))
    print(json.dumps(await run.go(port, plan["connections"], plan["seconds"])), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
