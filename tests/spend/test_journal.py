"""The journal and what ships it: rows survive dead databases, full disks and cancelled callers; intents become rows."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import UnavailableError
from sidecar.spend.journal import Journal
from sidecar.spend.recorder import Recorder
from sidecar.spend.rows import COLUMNS, head_of, micros
from sidecar.spend.segments import LINE_ROWS
from sidecar.types import SpendRecord, Usage
from tests.spend.rows import AT, MemoryLedger, exchange_id, held, row

pytestmark = pytest.mark.anyio
DURABILITIES = ("process", "disk")


def recorder(folder: Path, ledger: MemoryLedger, **options: Any) -> Recorder:
    """One that ships only when told to."""
    return Recorder(Journal(folder, **options), ledger, interval_s=3600, adopt_s=3600)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def make_unreadable(path: Path) -> None:
    """For root, too."""
    path.unlink()
    path.mkdir()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def died(folder: Path, *records: tuple[str, SpendRecord], owner: str | None = None) -> None:
    """Leave in `folder` what a process that wrote these intents ("I") and records ("R") and was killed leaves."""
    journal = Journal(folder) if owner is None else Journal(folder, owner=lambda: owner)
    for letter, record in records:
        await (journal.intent if letter == "I" else journal.record)(record)
    os.close(journal._lock)
    os.close(journal._fd)


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_row_goes_through_the_journal_into_the_ledger_and_leaves_no_file(
    tmp_path: Path, durability: str
) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger, durability=durability)
    await asyncio.gather(*(rows.intent(held(row(n))) for n in range(50)))
    await asyncio.gather(*(rows.record(row(n)) for n in range(50)))
    await rows.flush()
    assert ledger.records == [row(n) for n in range(50)]
    await rows.aclose()
    assert files(tmp_path) == []


async def test_all_callers_of_one_tick_share_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    await journal.intent(held(row(0)))
    writes: list[int] = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (writes.append(1), real(fd, data))[1])
    await asyncio.gather(*(journal.intent(held(row(n))) for n in range(1, 33)))
    assert sum(writes) <= 2  # the event loop wakes itself with at most one more
    monkeypatch.undo()
    await journal.aclose()


async def test_an_intent_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.intent(held(row(1)))
    (segment,) = segments(tmp_path)
    assert exchange_id(1).encode() in segment.read_bytes()
    await journal.aclose()


async def test_an_intent_left_open_becomes_an_unknown_row_at_the_held_cost(tmp_path: Path) -> None:
    await died(tmp_path, ("I", held(row(1), 777)), ("I", held(row(2), 888)), ("R", row(2)))
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.flush()
    assert ledger.records == [held(row(1), 777), row(2)]
    await rows.aclose()
    assert files(tmp_path) == []


async def test_open_intents_move_on_when_their_segment_is_shipped_and_deleted(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.intent(held(row(1), 777))
    for number in range(2, 6):
        await rows.intent(held(row(number)))
        await rows.record(row(number))
        await rows.flush()
    assert len(segments(tmp_path)) == 1
    assert ledger.records == [row(number) for number in range(2, 6)]
    await rows.aclose()
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert ledger.records[0] == held(row(1), 777)
    await heir.aclose()
    assert files(tmp_path) == []


async def test_a_living_process_is_never_adopted(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    living, other = recorder(tmp_path, ledger), recorder(tmp_path, ledger)
    await living.intent(held(row(1)))
    await other.flush()
    assert ledger.records == []
    await living.record(row(1))
    await living.aclose()
    await other.aclose()
    assert ledger.records == [row(1)]


async def test_several_adopters_at_once_write_each_row_once(tmp_path: Path) -> None:
    for dead in range(6):
        await died(tmp_path, *(("I" if n % 3 else "R", row(100 * dead + n)) for n in range(20)))
    ledger = MemoryLedger()
    heirs = [recorder(tmp_path, ledger) for _ in range(4)]
    await asyncio.gather(*(heir.flush() for heir in heirs))
    assert len(ledger.records) == 120
    assert sum(ledger.batches) == 120
    for heir in heirs:
        await heir.aclose()
    assert files(tmp_path) == []


async def test_an_adopter_that_dies_is_itself_followed(tmp_path: Path) -> None:
    await died(tmp_path, ("R", row(1)), ("I", held(row(2))))
    ledger = MemoryLedger()
    ledger.is_down = True
    first = recorder(tmp_path, ledger)
    with pytest.raises(UnavailableError):
        await first.flush()
    await first.aclose()
    ledger.is_down = False
    second = recorder(tmp_path, ledger)
    await second.flush()
    assert ledger.records == [row(1), held(row(2))]
    await second.aclose()


@pytest.mark.parametrize("what", ["lock", "segment"])
async def test_a_dead_process_whose_files_cannot_be_read_keeps_nobody_from_the_others(
    tmp_path: Path, what: str
) -> None:
    owners = iter(["a" * 32, "b" * 32, "c" * 32])
    for number in range(3):
        await died(tmp_path, ("R", row(number)), owner=next(owners))
    make_unreadable(
        next(path for path in segments(tmp_path) if path.name[0] == "b")
        if what == "segment"
        else tmp_path / f"{'b' * 32}.lock"
    )
    ledger = MemoryLedger()
    heir = recorder(tmp_path, ledger)
    if what == "segment":
        with pytest.raises(UnavailableError, match="cannot be read"):
            await heir.flush()
    else:
        await heir.flush()
    assert ledger.records == [row(0), row(2)]
    assert [name[0] for name in files(tmp_path)] == ["b", "b"]
    await heir.aclose()


async def test_a_segment_that_cannot_be_read_does_not_keep_a_process_from_closing(tmp_path: Path) -> None:
    sink, ledger = SlowSink(), MemoryLedger()
    sink.gate.set()
    rows = Recorder(Journal(tmp_path), ledger, sinks=[sink], interval_s=3600, adopt_s=3600)
    ledger.is_down = True
    await rows.record(row(1))
    with pytest.raises(UnavailableError):
        await rows.flush()
    ledger.is_down = False
    make_unreadable(segments(tmp_path)[0])
    await rows.aclose()
    assert sink.is_closed
    heir = Journal(tmp_path)
    assert len(heir.adopt(set())) == 1, "its lock is free"
    await heir.aclose()


async def test_a_torn_last_line_is_as_if_never_written_and_a_damaged_one_is_kept_aside(tmp_path: Path) -> None:
    await died(tmp_path, ("R", row(1)), ("R", row(2)), ("R", row(3)))
    (segment,) = segments(tmp_path)
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(lines[0] + b"R{broken}\n" + lines[1] + lines[2][:-7])
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.flush()
    assert ledger.records == [row(1), row(2)]
    await rows.aclose()
    assert [name.rpartition(".")[2] for name in files(tmp_path)] == ["damaged"]


async def test_a_dead_database_delays_rows_but_loses_none_and_keeps_none_in_memory(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    ledger.is_down = True
    rows = recorder(tmp_path, ledger, max_segment_bytes=4000)
    for number in range(100):
        await rows.intent(held(row(number)))
        await rows.record(row(number))
    with pytest.raises(UnavailableError):
        await rows.flush()
    assert len(segments(tmp_path)) > 10
    assert rows._journal.open_intents == 0
    ledger.is_down = False
    await rows.flush()
    assert ledger.records == [row(number) for number in range(100)]
    assert max(ledger.batches) <= 200
    await rows.aclose()


async def test_the_background_task_ships_and_recovers(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    rows = Recorder(Journal(tmp_path), ledger, interval_s=0.01, adopt_s=0.01)
    await died(tmp_path, ("R", row(1)))
    await rows.start()
    await rows.record(row(2))
    await until(lambda: len(ledger.rows) == 2)
    await rows.aclose()


class Disk:
    """Takes the place of `os.write` and `os.ftruncate` for journal files: room for `room` bytes, then ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, journal: Journal) -> None:
        self.room = 1 << 40
        self.can_cut = True
        write, ftruncate = os.write, os.ftruncate

        def limited(fd: int, data: bytes) -> int:
            if fd != journal._fd and not data.startswith((b"I", b"R", b"W")):
                return write(fd, data)
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = write(fd, bytes(data[: self.room]))
            self.room -= written
            return written

        def cut(fd: int, size: int) -> None:
            if not self.can_cut:
                raise OSError(errno.EIO, "Input/output error")
            ftruncate(fd, size)

        monkeypatch.setattr(os, "write", limited)
        monkeypatch.setattr(os, "ftruncate", cut)


@pytest.mark.parametrize("can_cut", [True, False])
@pytest.mark.parametrize("room", [0, 1, 300, 600])
async def test_a_full_disk_refuses_intents_and_leaves_no_trace_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, can_cut: bool
) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    disk = Disk(monkeypatch, rows._journal)
    await rows.intent(held(row(1)))
    await rows.intent(held(row(2), 222))
    disk.room, disk.can_cut = room, can_cut
    results = await asyncio.gather(
        rows.intent(held(row(3))), rows.intent(held(row(4))), rows.record(row(1)), return_exceptions=True
    )
    assert [type(result) for result in results] == [UnavailableError] * 3
    assert all(result.status == 503 for result in results)  # type: ignore[union-attr]
    disk.room, disk.can_cut = 1 << 40, True
    await rows.intent(held(row(5)))
    await rows.record(row(5))
    await rows.flush()
    assert ledger.records == [row(1), row(5)]
    # What is still open is what an heir writes, and nothing that was refused.
    os.close(rows._journal._lock)
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert ledger.records == [row(1), held(row(2), 222), row(5)]
    await heir.aclose()
    rows._journal._lock = -1
    await rows.aclose()


async def test_a_journal_folder_that_cannot_be_made_is_a_503_until_it_can(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ledger = MemoryLedger()
    rows = recorder(tmp_path / "file" / "journal", ledger)
    with pytest.raises(UnavailableError, match="cannot write its spend journal") as caught:
        await rows.intent(held(row(1)))
    assert caught.value.status == 503
    (tmp_path / "file").unlink()
    await rows.intent(held(row(1)))
    await rows.record(row(1))
    await rows.flush()
    assert ledger.records == [row(1)]
    await rows.aclose()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_cancelled_intent_is_as_if_never_asked_and_hurts_nobody_else(tmp_path: Path, turns: int) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    leaving = asyncio.ensure_future(rows.intent(held(row(1))))
    staying = asyncio.ensure_future(rows.intent(held(row(2), 222)))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()
    await staying
    await asyncio.wait({leaving})
    was_cancelled = leaving.cancelled()
    await rows.aclose()
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert held(row(2), 222) in ledger.records
    assert len(ledger.records) == (1 if was_cancelled else 2)
    await heir.aclose()


@pytest.mark.parametrize("turns", [1, 2])
async def test_a_cancelled_record_is_written_all_the_same(tmp_path: Path, turns: int) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    leaving = asyncio.create_task(rows.record(row(1)))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    await rows.flush()
    assert ledger.records == [row(1)]
    await rows.aclose()


async def test_text_and_counts_no_database_takes_are_made_storable(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.record(row(1, request_id="a\ud800", usage=Usage(input=10**30)))
    await rows.flush()
    (record,) = ledger.records
    assert record.request_id == "a?"
    assert record.usage.input == 2**63 - 1
    await rows.aclose()


async def test_a_silent_owners_hold_is_one_row_and_sums_to_the_hold(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.silent(held(row(1), 100))
    await rows.silent(held(row(1), 100))
    await rows.record(row(2, cost_nano=30))
    await rows.silent(held(row(2), 100))
    await rows.flush()
    assert [(record.attempt, record.cost_nano) for record in ledger.records] == [(0, 100), (0, 70), (1, 30)]
    await rows.aclose()


async def test_an_owner_that_turns_up_takes_the_row_of_its_silence_back(tmp_path: Path) -> None:
    """Whichever comes first, and however often it is told."""
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.silent(held(row(1), 100))
    await rows.flush()
    await rows.record(row(1, cost_nano=30))
    await rows.flush()
    for _ in range(2):
        await rows.heard(row(1))
    await rows.heard(row(2))
    await rows.record(row(2, cost_nano=40))
    await rows.silent(held(row(2), 100))
    await rows.flush()
    assert await ledger.costs_of([row(1).exchange_id, row(2).exchange_id]) == {
        row(1).exchange_id: 30, row(2).exchange_id: 40,
    }  # fmt: skip
    assert sum(record.cost_nano for record in ledger.records) == 70
    assert all(not record.usage.is_known for record in ledger.records if not record.attempt)
    await rows.aclose()


async def test_what_a_dead_process_left_settles_its_holds(tmp_path: Path) -> None:
    """Counters are told what the rows say, again until they answer; only then its segments go."""
    dead = Journal(tmp_path)
    await dead.record(row(1, cost_nano=30))
    await dead.intent(held(row(2), 100))
    await dead.aclose()
    ledger = MemoryLedger()
    heir = recorder(tmp_path, ledger)
    told: list[Mapping[str, int]] = []

    async def settle_dead(costs: Mapping[str, int]) -> list[str] | None:
        told.append(costs)
        return None if len(told) == 1 else list(costs)

    heir.settle_dead = settle_dead
    await heir.flush()
    assert any(name.endswith(".seg") for name in os.listdir(tmp_path))
    await heir.flush()
    assert os.listdir(tmp_path) == []
    assert told == [{row(1).exchange_id: 30}, {row(1).exchange_id: 30}, {row(2).exchange_id: 100}]
    assert sum(record.cost_nano for record in ledger.records) == 130
    await heir.aclose()


async def test_a_damaged_row_costs_none_of_those_written_with_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await asyncio.gather(*(journal.record(row(n)) for n in range(3)), *(journal.intent(held(row(n))) for n in (3, 4)))
    os.close(journal._lock)
    os.close(journal._fd)
    (segment,) = segments(tmp_path)
    data = segment.read_bytes()
    assert data.count(b"\n") == 2, "a line for each kind"
    for number in (1, 3):
        data = data.replace(b'["%s",1,' % exchange_id(number).encode(), b'["%s",true,' % exchange_id(number).encode())
    segment.write_bytes(data)
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    await rows.flush()
    assert ledger.records == [row(0), row(2), held(row(4))]
    await rows.aclose()
    assert [name.rpartition(".")[2] for name in files(tmp_path)] == ["damaged"]


async def test_segments_of_another_format_are_left_to_who_reads_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await died(tmp_path, ("R", row(1)))
    (segment,) = segments(tmp_path)
    foreign = tmp_path / segment.name.replace(".v1.", ".v987.")
    segment.rename(foreign)
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    for _ in range(2):
        await rows.flush()
    assert [message for message in caplog.messages if "v987" in message] == [
        "journal segments of format v987 wait for a gateway that reads it; this one reads v1"
    ]
    assert ledger.records == []
    foreign.rename(segment)
    await rows.flush()
    assert ledger.records == [row(1)]
    await rows.aclose()
    assert files(tmp_path) == []


async def test_whoever_resumes_before_the_write_waits_for_it(tmp_path: Path) -> None:
    """Other loops may have another order; here nobody but the test resumes them."""
    journal = Journal(tmp_path)
    intent = journal.intent(held(row(1)))
    record = journal.record(row(2))
    for step in (intent, record):
        step.send(None)  # type: ignore[attr-defined]
        assert isinstance(step.send(None), asyncio.Future), "not written: it must wait"  # type: ignore[attr-defined]
    assert segments(tmp_path) == []
    await asyncio.sleep(0)
    assert len(segments(tmp_path)) == 1
    for step in (intent, record):
        with pytest.raises(StopIteration):
            step.send(None)  # type: ignore[attr-defined]
    await journal.aclose()


async def test_an_intent_cancelled_before_its_write_is_withdrawn_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    leaving = journal.intent(held(row(1)))
    leaving.send(None)  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        leaving.throw(asyncio.CancelledError())  # type: ignore[attr-defined]
    await journal.intent(held(row(2), 222))
    assert journal.open_intents == 1
    await journal.aclose()
    ledger = MemoryLedger()
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert ledger.records == [held(row(2), 222)]
    await heir.aclose()


async def test_a_row_nothing_can_encode_is_refused_alone(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    rows = recorder(tmp_path, ledger)
    results = await asyncio.gather(
        rows.intent(held(row(1))),
        rows.intent(held(row(2, model=object()))),
        rows.record(row(3, model=object())),
        rows.record(row(4)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), TypeError, TypeError, type(None)]
    assert rows._journal.open_intents == 1
    await rows.record(row(1))
    await rows.flush()
    assert ledger.records == [row(1), row(4)]
    await rows.aclose()
    assert files(tmp_path) == []


async def test_more_rows_than_a_line_holds_are_several_lines_of_one_write(tmp_path: Path) -> None:
    count = 2 * LINE_ROWS + 1
    journal = Journal(tmp_path)
    await asyncio.gather(*(journal.intent(held(row(n))) for n in range(count)))
    await asyncio.gather(*(journal.record(row(n)) for n in range(0, count, 2)))
    (segment,) = segments(tmp_path)
    letters = [line[:1] for line in segment.read_bytes().splitlines()]
    assert letters == [b"I"] * 3 + [b"R"] * 2
    await journal.aclose()
    ledger = MemoryLedger()
    heir = recorder(tmp_path, ledger)
    await heir.flush()
    assert ledger.records == [held(row(n)) if n % 2 else row(n) for n in range(count)]
    await heir.aclose()


@pytest.mark.parametrize("at", [0.0, 1e-9, 0.1, AT, AT + 0.0000005, 1760000000.123457, 4.6e9 + 0.3, 1e12, -5.25, 1e300])
def test_an_instant_is_journalled_as_the_last_microsecond_not_after_it(at: float) -> None:
    rng = random.Random(at)
    moments = [at, *(at + rng.random() for _ in range(200))]
    assert [head_of(row(at=moment))[21] for moment in moments] == [micros(moment) for moment in moments]
    assert COLUMNS[21] == "at"


class SlowSink:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.records: list[SpendRecord] = []
        self.is_broken = self.is_closed = False

    async def write(self, records: Any) -> None:
        await self.gate.wait()
        if self.is_broken:
            raise RuntimeError("broken")
        self.records += records

    async def aclose(self) -> None:
        self.is_closed = True


async def test_a_slow_sink_delays_nothing_and_a_broken_one_is_counted(tmp_path: Path) -> None:
    sink = SlowSink()
    ledger = MemoryLedger()
    rows = Recorder(Journal(tmp_path), ledger, sinks=[sink], interval_s=3600, adopt_s=3600)
    for number in range(20):
        await rows.record(row(number))
    sink.is_broken = True
    sink.gate.set()
    await until(lambda: sum(rows.dropped_by_sink().values()) > 0)
    sink.is_broken = False
    await rows.record(row(20))
    await rows.aclose()
    assert sum(rows.dropped_by_sink().values()) + len(sink.records) == 21
    assert len(ledger.rows) == 21


async def test_sinks_hear_that_the_row_of_a_silence_is_taken_back(tmp_path: Path) -> None:
    sink = SlowSink()
    sink.gate.set()
    rows = Recorder(Journal(tmp_path), MemoryLedger(), sinks=[sink], interval_s=3600, adopt_s=3600)
    await rows.silent(held(row(1), 100))
    await rows.flush()
    for _ in range(2):
        await rows.heard(row(1))
    await rows.aclose()
    told = [(record.attempt, record.revision, record.cost_nano) for record in sink.records]
    assert told == [(0, 0, 100), (0, 1, -100)]


def test_importing_the_recorder_imports_no_database() -> None:
    code = "import sys, sidecar.spend.recorder; assert not {'sqlalchemy', 'alembic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
