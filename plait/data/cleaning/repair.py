"""Repair: text that says the same, written as it should be. Each step is a function of text alone.

repair       "schÃ¶n" -> "schön"              ftfy (Speer 2019) undoes wrong decoding, line by line where a line looks it
normalize    "e" + U+0301 -> "é"              Unicode's normal form; NFKC also makes "Ａ" and "①" plain
controls     "a\\x00b\\u200b" -> "ab"           control, invisible and private characters, terminal escapes, byte order marks
whitespace   "a \\r\\n\\n\\n\\nb" -> "a\\n\\nb"      one kind of line end, no blanks before it, one empty line at most
private      "to a@b.org" -> "to <email>"
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial

from plait import spec
from plait.errors import DataError

Step = Callable[[str], str]


def steps(clean: spec.Clean) -> dict[str, Step]:
    """The steps that are asked for, in their order, by name. Raises DataError: ftfy is not installed."""
    asked: dict[str, Step] = {}
    if clean.repair:
        asked["repair"] = _repair()
    if clean.normalize != "none":
        asked["normalize"] = partial(unicodedata.normalize, clean.normalize)
    if clean.controls:
        asked["controls"] = without_controls
    if clean.whitespace:
        asked["whitespace"] = tidied
    return asked | {kind: _PRIVATE[kind] for kind in _PRIVATE if kind in clean.private}


def missing(what: str, library: str) -> DataError:
    return DataError(f"data.clean: {what} needs {library}: pip install 'plait[clean]'")


def without_controls(text: str) -> str:
    if not _CONTROL.search(text):
        return text
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def tidied(text: str) -> str:
    return _EMPTY_LINES.sub("\n\n", "\n".join(map(str.rstrip, text.splitlines()))).strip("\n")


def _repair() -> Step:
    try:
        import ftfy
    except ImportError:
        raise missing("repair", "ftfy") from None

    def repair(text: str) -> str:
        if text.isascii():
            return text
        lines = text.splitlines(keepends=True)
        return "".join(ftfy.fix_encoding(line) if not line.isascii() and _MOJIBAKE.search(line) else line for line in lines)

    return repair


# What the first byte of a character of UTF-8 looks like in the encodings of one byte that ftfy undoes: letters of Latin, Greek, Cyrillic,
# signs and boxes. A line without any, in Chinese for example, need not be looked at; ftfy takes 1 s for 2 MB of text.
_MOJIBAKE = re.compile("[\x80-\u05ff\u2020-\u2022\u2200-\u25ff]")

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# C0 without tab, line feed and carriage return; C1 without NEL; soft hyphen, zero-width space, direction marks, word joiners, tags, BOM,
# private use. Zero-width joiners stay: Indic scripts and emoji are written with them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ue000-\uf8ff"
    "\U000e0000-\U000e007f\U000f0000-\U0010ffff]"
)
_EMPTY_LINES = re.compile("\n{3,}")

_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_GROUP = "[0-9A-Fa-f]{1,4}"
# RFC 5322's common form: not behind a letter, a digit or a sign that belongs to an address
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+%-]*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])", re.ASCII)
# four bytes, and no version number of five parts
_IPV4 = re.compile(rf"(?<![\w.]){_BYTE}(?:\.{_BYTE}){{3}}(?!\w|\.\d)", re.ASCII)
# all eight groups, or `::` for some of them; a time of day has no such
_IPV6 = re.compile(rf"(?<![\w:])(?:(?:{_GROUP}:){{7}}{_GROUP}|(?:{_GROUP}:){{1,6}}(?::{_GROUP}){{1,6}})(?![\w:])", re.ASCII)
# international (E.164: + and 7 to 15 digits), North American, a Chinese mobile number
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?!\w)|(?<![\w.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])"
    r"|(?<!\d)1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)",
    re.ASCII,
)


def _without_emails(text: str) -> str:
    return _EMAIL.sub("<email>", text) if "@" in text else text


def _without_addresses(text: str) -> str:
    text = _IPV4.sub("<ip>", text)
    return _IPV6.sub("<ip>", text) if ":" in text else text


_PRIVATE: dict[str, Step] = {"email": _without_emails, "ip": _without_addresses, "phone": partial(_PHONE.sub, "<phone>")}
