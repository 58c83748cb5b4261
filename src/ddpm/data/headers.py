"""Header checks made before Pillow opens a file: its kind, and how many bytes of it are not picture.

Comments and metadata are read whole when a file is opened, so 200 MB of them cost 200 MB whatever the picture's size. The walk
below only seeks.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_MOST_EXTRA = 16 << 20  # bytes of metadata; the largest colour profiles and previews in use are below 5 MB
_MOST_EXTRA_GIF = 1 << 20  # Pillow joins a GIF's comment 255 bytes at a time, in quadratic time


def sniff(head: bytes) -> str | None:
    """The kind of picture the first 16 bytes announce: PNG, JPEG, GIF, WEBP, BMP, TIFF or PPM; None for anything else."""
    starts = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP"}
    starts |= {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF"}
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return "PPM" if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() else None


def stranger(head: bytes) -> str:
    """What a file that is no picture of ours seems to be, for a message."""
    if not head:
        return "empty file"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"%!PS") or head.startswith(b"\xc5\xd0\xd3\xc6"):
        return "EPS/PostScript is not read; convert it to PNG"
    if text.startswith(b"%PDF"):
        return "a PDF, not a picture"
    if text.startswith(b"<"):
        return "HTML or XML, not a picture (a failed download?)"
    if head[4:8] == b"ftyp":
        return "HEIC/AVIF is not read; convert it to PNG or JPEG"
    return "not a PNG, JPEG, WEBP, GIF, BMP, TIFF or PPM picture"


def refusal(stream: BinaryIO, size: int, kind: str) -> str | None:
    """Why the file must not be opened, or None; leaves the stream at its start. `size`: bytes of the file."""
    limit = _MOST_EXTRA_GIF if kind == "GIF" else _MOST_EXTRA
    if size <= limit:  # no part of a file is larger than the file: nearly all pictures end here
        return None
    walk = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WEBP": _webp, "TIFF": _tiff}.get(kind)
    extra = 0 if walk is None else walk(stream, size)
    stream.seek(0)
    return None if extra <= limit else f"{extra / 1e6:,.0f} MB of comments or metadata, over {limit / 1e6:,.0f} MB"


def _png(stream: BinaryIO, size: int) -> int:
    extra, at = 0, 8
    while at + 12 <= size:
        stream.seek(at)
        length, kind = struct.unpack(">I4s", stream.read(8).ljust(8, b"\0"))
        extra += 0 if kind in (b"IDAT", b"fdAT") else length
        if kind == b"IEND" or extra > _MOST_EXTRA:
            break
        at += 12 + length
    return extra


def _jpeg(stream: BinaryIO, size: int) -> int:
    at = 2
    while at + 4 <= size:
        stream.seek(at)
        mark, kind, length = struct.unpack(">BBH", stream.read(4).ljust(4, b"\0"))
        if mark != 0xFF or kind == 0xDA or at > _MOST_EXTRA:  # the scan starts, or this is no JPEG: Pillow will say so
            break
        at += 2 + max(length, 2) if kind != 0xFF else 1
    return at


def _gif(stream: BinaryIO, size: int) -> int:
    """Bytes before the first frame."""
    stream.seek(0)
    flags = stream.read(13)[10:11]
    at = 13 + (3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0)
    while at < size and at <= 2 * _MOST_EXTRA_GIF:
        stream.seek(at)
        block = stream.read(2)
        if block[:1] != b"!":
            break
        at += 2
        length = 1
        while length and at < size and at <= 2 * _MOST_EXTRA_GIF:
            stream.seek(at)
            length = (stream.read(1) or b"\0")[0]
            at += 1 + length
    return at


def _webp(stream: BinaryIO, size: int) -> int:
    extra, at = 0, 12
    while at + 8 <= size and extra <= _MOST_EXTRA:
        stream.seek(at)
        kind, length = struct.unpack("<4sI", stream.read(8).ljust(8, b"\0"))
        extra += 0 if kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF") else length
        at += 8 + length + length % 2
    return extra


def _tiff(stream: BinaryIO, size: int) -> int:
    """Bytes of the values of the first directory; the pixels' offsets are among them, which is why the limit is generous."""
    stream.seek(0)
    head = stream.read(8)
    order = "<" if head[:2] == b"II" else ">"
    if head[2:3] == b"+" or head[3:4] == b"+":
        return 0 if size < 2**32 else size  # BigTIFF below 4 GiB has no reason to be one; Pillow reads it, its directory is not walked
    (at,) = struct.unpack(f"{order}I", head[4:8].ljust(4, b"\0"))
    stream.seek(at)
    (entries,) = struct.unpack(f"{order}H", stream.read(2).ljust(2, b"\0"))
    widths = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
    table = stream.read(12 * entries)
    total = 0
    for i in range(len(table) // 12):
        _, kind, count = struct.unpack_from(f"{order}HHI", table, 12 * i)
        total += count * (widths[kind] if kind < len(widths) else 8)
    return total
