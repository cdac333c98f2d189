"""The files of a journal: names, locks, lines, and reading them back.

`journal.py` writes segments, `recorder.py` ships them. A process holds `<owner>.lock` under `flock` as long as it lives
and appends to `<owner>-<number>.seg`. A line is a letter, JSON and a newline: `I` intent, `R` record, `W` intent
withdrawn (it was never dispatched). Rule: a line without its newline was never acknowledged and does not count.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec

from sidecar.types import SpendRecord, Usage

Key = tuple[str, int]
"""(exchange_id, attempt): what an intent and its record share."""

_NAME = re.compile(r"([0-9a-f]{16,64})(?:-([0-9]{8,})\.seg|\.lock)")
_INT64 = 2**63 - 1
_INT32 = 2**31 - 1
_SMALL = ("attempt", "revision", "http_status")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SpendRecord).decode
_decode_key = msgspec.json.Decoder(Key).decode


def segment_path(folder: Path, owner: str, number: int) -> Path:
    return folder / f"{owner}-{number:08d}.seg"


def lock_path(folder: Path, owner: str) -> Path:
    return folder / f"{owner}.lock"


def line_of(letter: bytes, record: SpendRecord) -> bytes:
    """The line of a record; what JSON or a database cannot hold (lone surrogates, huge counts) is replaced first."""
    try:
        return letter + _encode(record) + b"\n"
    except (UnicodeEncodeError, OverflowError):
        return letter + _encode(storable(record)) + b"\n"


def withdrawal_of(key: Key) -> bytes:
    return b"W" + _encode(key) + b"\n"


def storable(record: SpendRecord) -> SpendRecord:
    """The same record with every text encodable, without NUL, and every integer in 64 bits."""
    changes: dict[str, object] = {}
    for name in [f.name for f in fields(SpendRecord)]:
        value = getattr(record, name)
        changes[name] = tuple(_clean(item) for item in value) if isinstance(value, tuple) else _clean(value)
    for name in _SMALL:
        changes[name] = max(-_INT32, min(getattr(record, name), _INT32))
    changes["usage"] = Usage(
        **{name: max(-_INT64, min(count, _INT64)) for name, count in record.usage.as_dict().items()}
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_INT64, min(value, _INT64))
    return value


def lock(path: Path) -> int | None:
    """The descriptor of a lock file that is now ours; `None` if its process lives. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held by its process, or removed by another adopter meanwhile
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@dataclass(slots=True)
class Adopted:
    """The segments of a dead process, under its lock, oldest first. `drop` once their rows are in the ledger."""

    owner: str
    descriptor: int
    folder: Path
    paths: list[Path]

    def drop(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)
        lock_path(self.folder, self.owner).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let another process adopt them."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def adopt(folder: Path, *, known: set[str]) -> list[Adopted]:
    """Lock and return the segment sets of dead processes; `known` owners (ourselves, those adopted before) are left."""
    found: list[Adopted] = []
    for owner in sorted(_scan(folder).keys() - known):
        descriptor = lock(lock_path(folder, owner))
        if descriptor is None:
            continue
        # Listed again under the lock: its process may have gone on writing, or another adopter finished.
        adopted = Adopted(owner, descriptor, folder, _scan(folder).get(owner, []))
        if adopted.paths:
            found.append(adopted)
        else:
            adopted.drop()
    return found


def _scan(folder: Path) -> dict[str, list[Path]]:
    owners: dict[str, list[Path]] = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return owners
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            paths = owners.setdefault(match[1], [])
            if match[2]:
                paths.append(folder / name)
    for paths in owners.values():
        paths.sort(key=lambda path: int(path.stem.rpartition("-")[2]))
    return owners


class SegmentReader:
    """Reads segments in order, a bounded batch of records at a time. After the end, `open_intents` are those without
    a record; `damaged` counts whole lines that could not be understood."""

    def __init__(self, *, track_intents: bool) -> None:
        self.open_intents: dict[Key, SpendRecord] = {}
        self.damaged = 0
        self._track_intents = track_intents

    def batches(self, path: Path, size: int) -> Iterator[list[SpendRecord]]:
        """The records of one segment. Its intents are noted on the way."""
        batch: list[SpendRecord] = []
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn: written by a process that died in the middle
                record = self._take(line, path)
                if record is not None:
                    batch.append(record)
                    if len(batch) >= size:
                        yield batch
                        batch = []
        if batch:
            yield batch

    def _take(self, line: bytes, path: Path) -> SpendRecord | None:
        letter = line[:1]
        try:
            if letter == b"R":
                record = _decode(line[1:])
                self.open_intents.pop((record.exchange_id, record.attempt), None)
                return record
            if letter == b"I":
                if self._track_intents:
                    intent = _decode(line[1:])
                    self.open_intents[intent.exchange_id, intent.attempt] = intent
                return None
            if letter == b"W":
                self.open_intents.pop(_decode_key(line[1:]), None)
                return None
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass
        self.damaged += 1
        _log.error("a line of the journal segment %s is damaged and was skipped", path)
        return None
