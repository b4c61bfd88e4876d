"""Small valid files made wrong: bytes, numbers, structure; all follows from a seeded Random."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

MAX_BYTES = 1 << 18  # what is grown further teaches nothing and costs time
HEAD = 512  # where formats keep their sizes; half of all changes are made there

NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 1000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 10**6),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 10**12, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
# What readers of texts fall over: other kinds of values, sizes, signs, characters, paths.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e308, -1e308, 10**18, -(10**18),
    2**63, 2**64, 10**400, -(10**400), "", " ", "a", "\0", "\x1b[2J", "\ud800", "é" * 40,
    "x" * 5000, "1e400", "nan", "/etc/passwd", "../canary", "~nobody-here/x", "C:\\con", "-",
    "--", "🏀", [], {}, [None], [0], [[]], {"": 0}, {"a": {"a": {}}}, [1, 2], [1, -2],
    [10**30] * 3, "cpu", "cuda:99", "float32", "832x480", "1h", "9" * 5000, "\u202e", "a\nb",
)  # fmt: skip
RAW = (b"1e400", b"-1e400", b"NaN", b"Infinity", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000,
       b'"\\ud800"', b"\xff\xfe", b"null", b"\xef\xbb\xbf", b"{}", b"[]", b"\0")  # fmt: skip


def bits(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A few changes anywhere: bits, numbers, pieces moved, cut, doubled, taken from others."""
    data = bytearray(content)
    for _ in range(1 << random.randrange(4)):
        _change(random, data, others)
    return bytes(data[:MAX_BYTES])


def _change(random: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = _place(random, len(data))
    length = min(1 << random.randrange(9), len(data) - at)
    match random.randrange(9):
        case 0 if data:
            data[at] ^= 1 << random.randrange(8)
        case 1 if data:
            data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        case 2 | 3:
            size, form = random.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
            number = random.choice(NUMBERS)
            if random.random() < 0.3 and len(data) >= at + size:
                number = int.from_bytes(data[at : at + size], "little") + random.randrange(-16, 17)
            number &= (1 << 8 * size) - 1
            data[at : at + size] = struct.pack(random.choice("<>") + form, number)
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = data[at : at + length] * random.choice((1, 1, 2, 40))
        case 6:
            del data[at if random.random() < 0.5 else len(data) - length :]
        case 7 if others:
            other = random.choice(others)
            start = _place(random, len(other))
            data[at : at + length] = other[start : start + (1 << random.randrange(10))]
        case _:
            data[at:at] = random.choice((*RAW, random.randbytes(length), bytes(length)))


def _place(random: random.Random, length: int) -> int:
    top = min(length, HEAD) if random.random() < 0.5 else length
    return random.randrange(top) if top else 0


# ---------------------------------------------------------------- structure


def tree(random: random.Random, value: Any) -> Any:
    """A JSON-like value with something in it changed."""
    spots: list[tuple[Any, Any]] = []
    _spots(value, spots)
    if not spots or random.random() < 0.02:
        return random.choice(VALUES)
    holder, key = random.choice(spots)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("", "schema", "\0", "path", "sha256", "x" * 300))] = holder[key]
        case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            factor = random.choice((-1, 0.5, 2, 10**6, -(10**9), 2**40))
            with suppress(OverflowError):  # half of a whole number beyond all floats
                holder[key] = factor * holder[key]
        case 3:
            holder[key] = [holder[key]] * random.choice((1, 2, 50))
        case 4:
            holder[key] = random.choice(spots)[0]  # a part within itself is cut by `text_of`
        case _:
            holder[key] = random.choice(VALUES)
    return value


def _spots(value: Any, spots: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            spots.append((value, key))
            _spots(value[key], spots)


def text_of(value: Any) -> bytes:
    """JSON of a value, even where a part holds itself or a number is beyond what is written."""
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return repr(value)[:MAX_BYTES].replace("'", '"').encode("utf-8", "replace")


def json_text(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A JSON text with its tree changed; sometimes its bytes too."""
    try:
        value = json.loads(content)
        for _ in range(1 << random.randrange(3)):
            value = tree(random, value)
        changed = text_of(value)
    except (ValueError, RecursionError):
        changed = content
    return bits(random, changed, others) if random.random() < 0.25 else changed[:MAX_BYTES]


def json_lines(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Lines of JSON, some of them changed, doubled or left out."""
    lines = content.split(b"\n")
    for _ in range(1 + random.randrange(3)):
        at = random.randrange(len(lines))
        lines[at] = json_text(random, lines[at] or b"{}", others)
        if random.random() < 0.2:
            lines.insert(random.randrange(len(lines)), random.choice(lines))
    return b"\n".join(lines)[:MAX_BYTES]


def toml_text(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Lines of TOML with other values, other keys, and lines moved, doubled or left out."""
    lines = content.split(b"\n")
    for _ in range(1 << random.randrange(3)):
        at = random.randrange(len(lines))
        key, equals, _ = lines[at].partition(b"=")
        match random.randrange(5):
            case 0 | 1 if equals:
                lines[at] = key + b"= " + _toml_value(random)
            case 2:
                lines.insert(at, random.choice(lines + others[0].split(b"\n")))
            case 3:
                del lines[at : at + 1]
                lines = lines or [b""]
            case _:
                lines[at] = bits(random, lines[at], others)
    return b"\n".join(lines)[:MAX_BYTES]


def _toml_value(random: random.Random) -> bytes:
    odd = (
        b"inf", b"-nan", b"1979-05-27", b"0x1F", b'"""a\nb"""', b"'~nobody-here/x'", b"{}", b"1_0",
        b"07:32:00", b"[" * 2000, b"9" * 5000, b'"-3s"', b'"999999999h"', b'"0x0"',
    )  # fmt: skip
    return random.choice((*odd, text_of(random.choice(VALUES))))


def safetensors(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A safetensors file whose header is another tree, or whose bytes are others."""
    length = int.from_bytes(content[:8], "little")
    if random.random() < 0.3 or length > len(content):
        return bits(random, content, others)
    header = json_text(random, content[8 : 8 + length], others)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def sealed(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A state of the sampler changed, its own SHA-256 right again."""
    changed = safetensors(random, content, others)
    changed = changed.replace(b'"sha256": ', b'"sha256":', 1).replace(b"}}", b"}} ", 1)  # as long
    found = re.search(rb'"sha256":"([^"]{64})"', changed)
    if found is None or random.random() < 0.2:
        return changed
    start, stop = found.span(1)
    digest = hashlib.sha256(changed[:start] + b"0" * 64 + changed[stop:]).hexdigest().encode()
    return changed[:start] + digest + changed[stop:]


def archive(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A zip archive with one member changed and its checksum right again (a .pth)."""
    if random.random() < 0.2:
        return bits(random, content, others)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as whole:
            members = [(name, whole.read(name)) for name in whole.namelist()]
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, ValueError, RuntimeError):
        return bits(random, content, others)
    if not members:
        return bits(random, content, others)
    target = next((n for n, _ in members if n.endswith("data.pkl")), members[0][0])
    if random.random() < 0.2:
        target = random.choice(members)[0]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as whole:
        for name, data in members:
            whole.writestr(name, bits(random, data, others) if name == target else data)
    return made.getvalue()


def chunks(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A PNG or WebP with one chunk changed and what frames it (lengths, checksums) right again."""
    if random.random() < 0.3:
        return bits(random, content, others)
    if content.startswith(b"\x89PNG"):
        return _png(random, content, others)
    if content[:4] == b"RIFF":
        return _riff(random, content, others)
    return bits(random, content, others)


def _png(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    parts, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        parts.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if not parts:
        return bits(random, content, others)
    kind, data = parts.pop(chosen := random.randrange(len(parts)))
    again = (kind, bits(random, data, others))
    for _ in range(random.choice((0, 1, 1, 1, 2))):
        parts.insert(chosen if random.random() < 0.8 else random.randrange(len(parts) + 1), again)
    framed = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )
    return content[:8] + b"".join(framed)


def _riff(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    parts, at = [], 12
    while at + 8 <= len(content):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        parts.append((content[at : at + 4], content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    if not parts:
        return bits(random, content, others)
    kind, data = parts.pop(chosen := random.randrange(len(parts)))
    for _ in range(random.choice((0, 1, 1, 1, 3))):
        parts.insert(chosen, (kind, bits(random, data, others)))
    body = b"".join(k + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for k, d in parts)
    return content[:4] + struct.pack("<I", 4 + len(body)) + content[8:12] + body
