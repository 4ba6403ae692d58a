"""A strict reader for the zip archives that ``torch.export.save`` writes.

Every byte of the file belongs to exactly one part (records in order, then the directory, then its end), so there is only
one way to read it. Whatever torch's writer does not produce is refused: compression, gaps, comments, links, a second
directory, bytes before or after the archive, names that differ only in case.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

_LOCAL, _DIRECTORY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_DESCRIPTOR, _END64, _LOCATOR64 = b"PK\x07\x08", b"PK\x06\x06", b"PK\x06\x07"
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800
_FILE_TYPES = (0, 0o100000)
"""Unix file types of an entry: not given, or a regular file (a link or a folder is refused)."""
_MAX_RECORDS = 100_000
"""More tensors than any network of this field has; keeps the time that a hostile directory takes bounded."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class ArchiveError(ValueError):
    """The bytes are not an archive as torch writes it; the text says why, without a file name."""


@dataclass(frozen=True)
class _Entry:
    """One entry of the directory at the end of the archive."""

    name: str
    raw_name: bytes
    flags: int
    crc: int
    size: int
    offset: int


def read_records(data: bytes) -> dict[str, memoryview]:
    """Contents by record name, without the leading folder that all records share.

    Raises:
        ArchiveError: Not an archive, or not one of the exact form that torch writes.
    """
    try:
        start, count, stop = _directory_bounds(data)
        entries = _directory(data, start, count, stop)
        found = _contents(data, entries, start)
    except struct.error as error:
        raise ArchiveError("the archive is cut off") from error
    return _without_folder(found)


def _directory_bounds(data: bytes) -> tuple[int, int, int]:
    """Offset, number of entries and end of the directory; the end records stand at the very end of the file."""
    if len(data) < 22 or data[:4] != _LOCAL or data[-22:-18] != _END:
        raise ArchiveError("not a whole zip archive")
    disk, first, here, count, size, start, comment = struct.unpack("<HHHHIIH", data[-18:])
    if disk or first or here != count or comment or 0xFFFF in (here, count) or 0xFFFFFFFF in (size, start):
        raise ArchiveError("an archive of several parts, with a comment, or larger than 4 GiB")
    stop = start + size
    end = len(data) - 22
    if stop != end and not _is_zip64_end(data[stop:end], stop, count, size, start):
        raise ArchiveError("bytes that belong to no record, or a second directory")
    if count > _MAX_RECORDS:
        raise ArchiveError(f"{count} records")
    return start, count, stop


def _is_zip64_end(tail: bytes, at: int, count: int, size: int, start: int) -> bool:
    """Whether these are the two zip64 end records that torch always writes, saying the same as the plain one."""
    if len(tail) != 76 or tail[:4] != _END64 or tail[56:60] != _LOCATOR64:
        return False
    length, _, _, disk, first, here, total, size64, start64 = struct.unpack("<QHHIIQQQQ", tail[4:56])
    locator_disk, at64, disks = struct.unpack("<IQI", tail[60:])
    same = (here, total, size64, start64, at64) == (count, count, size, start, at)
    return same and length == 44 and not (disk or first or locator_disk) and disks == 1


def _directory(data: bytes, start: int, count: int, stop: int) -> list[_Entry]:
    entries, place = [], start
    for _ in range(count):
        if data[place : place + 4] != _DIRECTORY:
            raise ArchiveError("a damaged directory")
        fields = struct.unpack("<HHHHHHIIIHHHHHII", data[place + 4 : place + 46])
        _, _, flags, method, _, _, crc, packed, size, names, extra, comment, disk, _, attributes, offset = fields
        raw = data[place + 46 : place + 46 + names]
        if method != 0 or packed != size:
            raise ArchiveError("a compressed record")
        if flags & ~(_SIZES_FOLLOW | _UTF8) or comment or disk or extra or size == 0xFFFFFFFF:
            raise ArchiveError("a record that is encrypted, split, commented or larger than 4 GiB")
        if (attributes >> 16) & 0o170000 not in _FILE_TYPES or attributes & 0x10:
            raise ArchiveError("a record that is a link or a folder")
        entries.append(_Entry(_decoded(raw), raw, flags, crc, size, offset))
        place += 46 + names
    if place != stop:
        raise ArchiveError("a directory of another length than it says")
    return entries


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArchiveError("a record whose name is not UTF-8") from error


def _contents(data: bytes, entries: list[_Entry], stop: int) -> dict[str, memoryview]:
    """Contents by full name; the records follow each other from the first byte up to the directory."""
    found: dict[str, memoryview] = {}
    view, place = memoryview(data), 0
    for entry in entries:
        if entry.offset != place or data[place : place + 4] != _LOCAL:
            raise ArchiveError("records that overlap or leave gaps")
        _, flags, method, _, _, crc, packed, size, names, extra = struct.unpack("<HHHHHIIIHH", data[place + 4 : place + 30])
        begin = place + 30 + names + extra
        end = begin + entry.size
        follows = bool(flags & _SIZES_FOLLOW)
        expected = (0, 0, 0) if follows and size == 0 else (entry.crc, entry.size, entry.size)
        same = flags == entry.flags and method == 0 and data[place + 30 : place + 30 + names] == entry.raw_name
        if not same or (crc, packed, size) != expected or end > stop:
            raise ArchiveError("a record that differs from its entry in the directory")
        content = view[begin:end]
        if zlib.crc32(content) != entry.crc:
            raise ArchiveError("a damaged record (its checksum differs)")
        if entry.name in found:
            raise ArchiveError("two records of one name")
        found[entry.name] = content
        place = end + (_descriptor(data, end, entry) if follows else 0)
    if place != stop:
        raise ArchiveError("bytes that belong to no record")
    return found


def _descriptor(data: bytes, place: int, entry: _Entry) -> int:
    """Length of the descriptor after a record: checksum and sizes, of 4 or 8 bytes each, as in the directory."""
    for form, length in (("<III", 16), ("<IQQ", 24)):
        block = data[place : place + length]
        same = block[:4] == _DESCRIPTOR and len(block) == length
        if same and struct.unpack(form, block[4:]) == (entry.crc, entry.size, entry.size):
            return length
    raise ArchiveError("a record that differs from its entry in the directory")


def _without_folder(found: dict[str, memoryview]) -> dict[str, memoryview]:
    folders = {name.partition("/")[0] for name in found}
    if len(folders) != 1:
        raise ArchiveError("records in more than one folder")
    inner = {name.partition("/")[2]: content for name, content in found.items()}
    for name in inner:
        if not _NAME.fullmatch(name) or ".." in name:
            raise ArchiveError(f"a record of an unusual name ({name[:60]!a})")
    if len({name.lower() for name in inner}) != len(found):
        raise ArchiveError("two records whose names differ only in case")
    return inner
