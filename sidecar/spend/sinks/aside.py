"""Calls that may block for ever (a pipe nobody reads), in a daemon thread each: neither the event loop nor the end of
the process waits for them, as it would for the loop's own threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable


async def aside(call: Callable[[], None]) -> None:
    """Returns when the call is done; raises what it raises. Cancelled, the call is left alone."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if not done.done():
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - for whoever awaits
            found: BaseException | None = error
        else:
            found = None
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=run, name="sidecar-sink", daemon=True).start()
    await done
