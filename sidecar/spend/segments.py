"""The files of a journal: names, locks, lines, and reading them back.

`journal.py` writes segments, `recorder.py` ships them, `rows.py` says what a row is. A process holds `<owner>.lock`
under `flock` as long as it lives and appends to `<owner>-<number>.v1.seg`. A line is a letter, a JSON array of all of
that kind in one write, and a newline: `I` heads of intents, `R` rows of records, `W` keys of intents withdrawn (never
dispatched). A segment of another version is left to a process that reads it. Rule: a line without its newline was
never acknowledged and does not count.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from sidecar.spend.rows import HeadColumns, Row, RowColumns, cleaned, with_usage
from sidecar.types import SpendRecord

Key = tuple[str, int]
"""(exchange_id, attempt): what an intent and its record share."""

Columns = tuple[Any, ...]
"""A row, a head or a key."""

LINE_ROWS = 500
"""At most in one line: so much is read back in one go."""
_VERSION = "v1"
"""Of what a line holds: change it with the ledger's columns."""
_NAME = re.compile(r"([0-9a-f]{16,64})(?:-([0-9]{8,})\.(v[0-9]+)\.seg|\.lock)")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_each = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_withdrawn = msgspec.json.Decoder(list[Key]).decode


def segment_path(folder: Path, owner: str, number: int) -> Path:
    return folder / f"{owner}-{number:08d}.{_VERSION}.seg"


def lock_path(folder: Path, owner: str) -> Path:
    return folder / f"{owner}.lock"


class Lines:
    """What is written at once. An intent and what became of it may be in any order: the intent is read first."""

    __slots__ = ("intents", "records", "withdrawn")

    def __init__(self) -> None:
        self.intents: list[Columns] = []
        self.records: list[Columns] = []
        self.withdrawn: list[Columns] = []

    def encoded(self) -> bytes:
        """What JSON cannot hold (lone surrogates, huge counts) is replaced."""
        data = _line(b"I", self.intents) if self.intents else b""
        if self.records:
            data += _line(b"R", self.records)
        return data + _line(b"W", self.withdrawn) if self.withdrawn else data


def _line(letter: bytes, rows: Sequence[Columns]) -> bytes:
    if len(rows) > LINE_ROWS:
        return b"".join(_line(letter, rows[at : at + LINE_ROWS]) for at in range(0, len(rows), LINE_ROWS))
    try:
        return letter + _encode(rows) + b"\n"
    except (UnicodeEncodeError, OverflowError):
        return letter + _encode([_encodable(row) for row in rows]) + b"\n"


def _encodable(row: Columns) -> Columns:
    try:
        _encode(row)
    except (UnicodeEncodeError, OverflowError):
        return cleaned(row)
    return row


def trouble_of(row: Columns) -> Exception | None:
    """Why not even a cleaned row can be encoded; `None` if it can."""
    try:
        _encode(_encodable(row))
    except Exception as error:  # noqa: BLE001 - said to whose row it is
        return error
    return None


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
    """The segments of a dead process, under its lock, oldest first. `drop` once their rows are in the ledger.
    `intents`: those left open, once their rows are."""

    owner: str
    descriptor: int
    folder: Path
    paths: list[Path]
    intents: list[SpendRecord] | None = None

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
        try:
            adopted = _adopted(folder, owner)
        except OSError as error:  # of another user, or unreadable: the others are not to wait for it
            _warn_of_files(owner, error.strerror or type(error).__name__)
            continue
        if adopted is not None:
            found.append(adopted)
    return found


def _adopted(folder: Path, owner: str) -> Adopted | None:
    descriptor = lock(lock_path(folder, owner))
    if descriptor is None:
        return None
    adopted = Adopted(owner, descriptor, folder, [])
    try:
        # Listed again under the lock: its process may have gone on writing, or another adopter finished.
        adopted.paths = _scan(folder).get(owner, [])
        if not adopted.paths:
            adopted.drop()
            return None
    except BaseException:
        adopted.release()
        raise
    return adopted


def _scan(folder: Path) -> dict[str, list[Path]]:
    owners: dict[str, list[Path]] = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return owners
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or match[3] not in (None, _VERSION):
            if match is not None:
                _warn_of(match[3])
            continue
        paths = owners.setdefault(match[1], [])
        if match[2]:
            paths.append(folder / name)
    for paths in owners.values():
        paths.sort(key=lambda path: int(path.name.partition("-")[2].partition(".")[0]))
    return owners


@lru_cache(maxsize=256)
def _warn_of_files(owner: str, why: str) -> None:
    _log.warning("the journal segments of process %s cannot be looked at: %s", owner, why)


@lru_cache(maxsize=16)
def _warn_of(version: str) -> None:
    _log.warning("journal segments of format %s wait for a gateway that reads it; this one reads %s", version, _VERSION)


class SegmentReader:
    """Reads segments in order, a bounded batch of records at a time. After the end, `open_intents` are those without
    a record; `damaged` counts whole lines that could not be understood."""

    def __init__(self, *, track_intents: bool) -> None:
        self.open_intents: dict[Key, Row] = {}
        self.damaged = 0
        self._track_intents = track_intents

    def batches(self, path: Path, size: int) -> Iterator[list[Row]]:
        """The records' rows of one segment, none if it is gone. Its intents are noted on the way."""
        batch: list[Row] = []
        try:
            opened = path.open("rb")
        except FileNotFoundError:  # nothing brings it back: nobody is to wait for it
            _log.error("the journal segment %s is gone: somebody removed it", path)
            return
        with opened as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn: written by a process that died in the middle
                batch += self._take(line, path)
                if len(batch) >= size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _take(self, line: bytes, path: Path) -> Sequence[Row]:
        letter = line[:1]
        try:
            if letter == b"R":
                rows = self._decoded(_RECORDS, line, path)
                if self._track_intents:
                    for row in rows:
                        self.open_intents.pop((row[0], row[1]), None)
                return rows
            if letter == b"I":
                if self._track_intents:
                    for head in self._decoded(_INTENTS, line, path):
                        self.open_intents[head[0], head[1]] = with_usage(head)
                return ()
            if letter == b"W":
                for key in _decode_withdrawn(line[1:]):
                    self.open_intents.pop(key, None)
                return ()
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass
        self._skip(path)
        return ()

    def _decoded(self, kind: _Kind, line: bytes, path: Path) -> list[Columns]:
        """What no database holds (NUL) is replaced here, where no request waits."""
        try:
            rows = kind.decode(line[1:])
        except msgspec.ValidationError:  # of one row, maybe: the others are whole
            rows = []
            for row in _decode_each(line[1:]):
                try:
                    rows.append(kind.decode_one(row))
                except msgspec.MsgspecError:
                    self._skip(path)
        return rows if b"\\u0000" not in line else [cleaned(row) for row in rows]

    def _skip(self, path: Path) -> None:
        self.damaged += 1
        _log.error("a line of the journal segment %s is damaged and was skipped", path)


class _Kind:
    """Strict decoders of all rows of a line, and of one."""

    def __init__(self, columns: Any) -> None:
        self.decode: Callable[[bytes], list[Columns]] = msgspec.json.Decoder(list.__class_getitem__(columns)).decode
        self.decode_one: Callable[[msgspec.Raw], Columns] = msgspec.json.Decoder(columns).decode


_RECORDS, _INTENTS = _Kind(RowColumns), _Kind(HeadColumns)
