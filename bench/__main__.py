"""`python -m bench [--quick] [--json]`: everything in one run, each process on a core of its own; writes
docs/benchmarks.md unless `--quick`. CPU per request is the gateway process's own (utime + stime from /proc)."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.apps import MASTER

ROOT = Path(__file__).parent.parent
MESSAGES = [{"role": "user", "content": "word " * 180}]


def pin(pid: int, core: int) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, {core % (os.cpu_count() or 1)})


def cpu_us(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def process(args: list[str], core: int, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(args, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True)
    pin(child.pid, core)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def gateway(name: str, upstream: int, redis: str | None = None) -> Iterator[tuple[int, int]]:
    """(pid, port) of one uvicorn process serving `bench.apps:name` on core 0."""
    port = free_port()
    args = [sys.executable, "-m", "uvicorn", f"bench.apps:{name}", "--factory", "--port", str(port)]
    args += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"]
    env = {"BENCH_UPSTREAM": str(upstream)} | ({"BENCH_REDIS": redis} if redis else {})
    with process(args, 0, env) as child:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield child.pid, port


def load(port: int, key: str, body: dict[str, Any], seconds: float, rate: float | None = None, conns: int = 64) -> Any:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\n"
    )
    plan = {
        "head": head, "body": json.dumps(body, separators=(",", ":")), "connections": conns, "seconds": seconds,
        "rate": rate,
    }  # fmt: skip
    args = [sys.executable, "-m", "bench.load", str(port), json.dumps(plan)]
    with process(args, 1) as child:
        assert child.stdout is not None
        return json.loads(child.stdout.readline())


def mint(port: int) -> str:
    body = {"max_budget": 1_000_000, "rpm_limit": 10**9, "tpm_limit": 10**12, "max_parallel_requests": 10_000}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/key/generate",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {MASTER}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["key"])


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A real Redis on core 1, from the wheel the tests use."""
    from tests.servers.redis import LocalServer, program

    folder = Path(tempfile.mkdtemp(prefix="sidecar-bench-redis-"))
    folder.chmod(0o777)
    server = LocalServer(program("redis", folder), folder)
    server.start()
    assert server.process is not None
    pin(server.process.pid, 1)
    try:
        yield server.url
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


SCENARIOS = [
    # name, app, model, streamed, redis
    ("bare ASGI hello", "hello", "same", False, False),
    ("bare proxy (UpstreamProxy alone)", "proxy", "same", False, False),
    ("bare proxy, streamed", "proxy", "same", True, False),
    ("full stack, same dialect", "full", "same", False, False),
    ("full stack, same dialect, streamed", "full", "same", True, False),
    ("full stack, translated", "full", "translated", False, False),
    ("full stack, translated, streamed", "full", "translated", True, False),
    ("full stack, same dialect, Redis", "full", "same", False, True),
]


def measure(row: tuple[str, str, str, bool, bool], upstream: int, redis: str | None, runs: int, seconds: float) -> Any:
    name, app, model, streamed, uses_redis = row
    with gateway(app, upstream, redis if uses_redis else None) as (pid, port):
        idle = rss_mb(pid)
        key = mint(port) if app == "full" else "sk-none"
        body = {"model": model, "messages": MESSAGES, "max_tokens": 100, **({"stream": True} if streamed else {})}
        load(port, key, body, min(1.0, seconds))
        samples = []
        for _ in range(runs):
            before = cpu_us(pid)
            result = load(port, key, body, seconds)
            used = cpu_us(pid) - before
            result["us"] = used / max(1, result["requests"])
            samples.append(result)
        rate = statistics.median(s["requests"] / s["seconds"] for s in samples)
        fixed = load(port, key, body, seconds, rate=200.0 if not streamed else 20.0)
        return {
            "name": name,
            "rps": rate,
            "us": statistics.median(s["us"] for s in samples),
            "us_chunk": statistics.median(s["us"] for s in samples) / 53 if streamed else None,
            "p50_ms": fixed["p50_ms"],
            "p99_ms": fixed["p99_ms"],
            "errors": sum(s["errors"] for s in samples) + fixed["errors"],
            "load_cpu": statistics.median(s["cpu_share"] for s in samples),
            "idle_mb": idle,
            "rss_mb": rss_mb(pid),
        }


def import_ms() -> float:
    code = "import time; t=time.perf_counter(); import sidecar; print((time.perf_counter()-t)*1000)"
    return min(float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(5))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| scenario | requests/s | CPU µs/request | CPU µs/chunk | p50 ms | p99 ms | load CPU | RSS MB | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        chunk = f"{r['us_chunk']:.1f}" if r["us_chunk"] is not None else ""
        lines.append(
            f"| {r['name']} | {r['rps']:,.0f} | {r['us']:.0f} | {chunk} | {r['p50_ms']:.2f} | {r['p99_ms']:.2f} | "
            f"{r['load_cpu']:.0%} | {r['rss_mb']:.0f} | {r['errors']} |"
        )
    return "\n".join(lines)


def idle_mb(rows: list[dict[str, Any]]) -> str:
    alone = [row["idle_mb"] for row in rows if "Redis" not in row["name"]]
    shared = [row["idle_mb"] for row in rows if "Redis" in row["name"]]
    return f"{max(alone):.0f} MB" + (f", with Redis {max(shared):.0f} MB" if shared else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--quick", action="store_true", help="one short run of each")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help="scenarios whose name contains this")
    options = parser.parse_args()
    runs, seconds = (1, 2.0) if options.quick else (3, 5.0)
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(process([sys.executable, "-m", "bench.mock"], 1))
        assert mock.stdout is not None
        upstream = int(mock.stdout.readline())
        redis = None
        with contextlib.suppress(ImportError):
            redis = stack.enter_context(redis_server())
        rows = []
        for row in SCENARIOS:
            if (options.only and options.only not in row[0]) or (row[4] and redis is None):
                continue
            before = cpu_us(mock.pid)
            started = time.perf_counter()
            measured = measure(row, upstream, redis, runs, seconds)
            measured["mock_cpu"] = (cpu_us(mock.pid) - before) / 1e6 / (time.perf_counter() - started)
            rows.append(measured)
            print(table([measured]).splitlines()[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "?")
    text = f"""# Benchmarks

`make bench` made this page. One run; the gateway pinned to one core, load generator and mock provider on the other.

Machine: {os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}. 1 KB request,
0.5 KB answer or 50 streamed pieces, 64 connections; medians of {runs} runs of {seconds:g} s. CPU is that of the
gateway's process. Latencies are at a fixed rate (200/s, streams 20/s), counted from when a request was due; a streamed
answer takes the provider about 30 ms. The load generator's CPU share is in the table; the mock provider's share of
the same core was at most {max(r["mock_cpu"] for r in rows):.0%}, so neither is the bottleneck while their sum stays
below 100 %.

{table(rows)}

`import sidecar`: {import_ms():.0f} ms. Idle RSS of the full gateway: {idle_mb(rows)}.

{(ROOT / "bench" / "notes.md").read_text().strip()}
"""
    print(text)
    if not options.quick and not options.only:
        (ROOT / "docs" / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
