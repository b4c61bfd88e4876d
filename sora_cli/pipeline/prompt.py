"""Prompt text, made equal to what the published models were trained on.

Wan cleans text as ftfy.fix_text → html.unescape twice → strip → collapse whitespace. ftfy's
rewriting of fullwidth punctuation, curly quotes and ligatures changes the tokens, so those rules
are here, written from ftfy 6.3's documented behaviour. Its mojibake detector is not: it guesses,
and a typed prompt doesn't carry text decoded in the wrong encoding.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.entities import html5

# Ligatures and digraphs of Latin letters. æ and œ are letters of their own and stay.
_LIGATURES = {
    "Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž",
    "ǆ": "dž", "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj", "ﬀ": "ff",
    "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st",
}  # fmt: skip

# Fullwidth Latin and punctuation, halfwidth katakana and hangul → the usual width. The
# ideographic space belongs to them, though Unicode doesn't list it as fullwidth.
_WIDTHS = {
    "\u3000": " ",
    **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)},
}

_QUOTES = {
    **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
}

# C1 control characters are Windows-1252 read as Latin-1; the five that it leaves undefined stay.
_C1_CONTROLS = {
    chr(code): bytes([code]).decode("cp1252")
    for code in range(0x80, 0xA0)
    if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}

# Nothing to see: ASCII controls but tab and line ends, deprecated Arabic ones, annotation marks,
# the byte-order mark. Joiners and direction marks shape what is read, and stay.
_INVISIBLE = dict.fromkeys(
    [
        *range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F,
        *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD),
    ]
)  # fmt: skip

_LOOKALIKES = str.maketrans(_C1_CONTROLS | _LIGATURES | _WIDTHS | _QUOTES)
_TERMINAL_ESCAPE = re.compile("\033\\[[0-9;]*[a-zA-Z]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")


def clean_text(text: str) -> str:
    """The text as the text encoder must see it: on one line, in plain characters.

    Applied to prompts and negative prompts alike; applying it again changes nothing for text that
    isn't HTML. Source: `basic_clean` and `whitespace_clean` of Wan and diffusers, with ftfy.
    """
    text = _fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def _fix_text(text: str) -> str:
    """ftfy.fix_text without its mojibake detector."""
    fixed_lines = []
    unescape = True
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        # A literal "<" means that the text is HTML, where an entity is written on purpose.
        unescape = unescape and "<" not in line
        fixed_lines.append(_fix_line(line, unescape))
    return "".join(fixed_lines)


def _fix_line(line: str, unescape: bool) -> str:
    """Every rule in turn, until none finds anything more (entities may hide fullwidth forms)."""
    while True:
        before = line
        if unescape:
            line = _ENTITY.sub(_entity, line)
        line = line.translate(_LOOKALIKES)
        line = _SURROGATE_PAIR.sub(_join_surrogates, line)
        line = _SURROGATE.sub("\ufffd", line)
        line = _TERMINAL_ESCAPE.sub("", line).translate(_INVISIBLE)
        line = unicodedata.normalize("NFC", line)
        if line == before:
            return line


def _entity(match: re.Match[str]) -> str:
    """The character an HTML entity stands for; also `&EACUTE;`, an entity written in capitals."""
    entity = match.group(0)
    name = entity[1:]
    if name in html5:
        return html5[name]
    if name.startswith("#"):
        character = html.unescape(entity)
        return entity if ";" in character else character
    shouted = name.isupper() and name.lower() in html5 and html.unescape(entity) == entity
    return html5[name.lower()].upper() if shouted else entity


def _join_surrogates(match: re.Match[str]) -> str:
    """Two halves of a UTF-16 pair, as the one character they spell."""
    return match.group(0).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
