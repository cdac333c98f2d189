"""A segment that cannot be read, or that somebody removed, keeps no other row from the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.errors import UnavailableError
from tests.spend.rows import MemoryLedger, row
from tests.spend.test_journal import recorder

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_gone", [True, False])
async def test_of_this_process_and_of_others(tmp_path: Path, is_gone: bool) -> None:
    ledger = MemoryLedger()
    ledger.is_down = True
    dead, alive = recorder(tmp_path, ledger), recorder(tmp_path, ledger)
    await dead.record(row(1))
    await dead.aclose(timeout_s=0.1)
    for number in (2, 3):
        await alive.record(row(number))
        with pytest.raises(UnavailableError):
            await alive.flush()
    _spoil(tmp_path, is_gone)
    ledger.is_down = False
    await alive.record(row(4))
    if is_gone:
        await alive.flush()
    else:
        with pytest.raises(UnavailableError, match="cannot be read"):
            await alive.flush()
    assert ledger.records == [row(1), row(3), row(4)]
    await alive.aclose()


def _spoil(folder: Path, is_gone: bool) -> None:
    [path] = [path for path in folder.glob("*.seg") if row(2).exchange_id.encode() in path.read_bytes()]
    path.unlink()
    if not is_gone:
        path.mkdir()  # root reads any file
