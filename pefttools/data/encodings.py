"""Determine a text file's encoding: from the settings, a byte-order mark, or, with a warning, the encodings that
Windows uses in western Europe and in China.

A file in the default encoding is checked as a whole before its first row is read, so an invalid byte far down is
reported at once. A file that is not UTF-8 is read as cp1252 only if that gives a text of western Europe: mostly ASCII,
with letters and punctuation of those languages in between. It is read as gb18030 only if that gives common Chinese
characters, with neither the kana of Japanese nor the spaces of Korean between them. Everything else is rejected.
"""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path

from pefttools.data.compression import DAMAGE, explained, opened
from pefttools.data.settings import UTF8, FileSettings
from pefttools.errors import UnreadableLine, UserError
from pefttools.reporter import Reporter

MARKS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WESTERN = set("àâäãåáæçèéêëìíîïñòóôöœøùúûüÿßÀÂÄÃÅÁÆÇÈÉÊËÌÍÎÏÑÒÓÔÖŒØÙÚÛÜŸ‘’‚“”„–—…€£«»‹›°·•¿¡§©®™º\xa0")
PORTUGUESE = set("õÕ")
NOT_WITH_PORTUGUESE = set("öüÖÜ")
"""õ and ö in one text mean that the text is Hungarian with ő and ö, in another encoding."""
WESTERN_SHARE = 0.15
"""Largest share of non-ASCII characters in a text of western Europe."""
CHINESE, KANA = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")
SPACED = re.compile("(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])")
COMMON_SHARE = 0.9
"""Least share of common characters, those of the first level of GB 2312, in a Chinese text."""
LEAST = 20
"""Number of characters of a Chinese text that are needed to recognise it."""
ODD_SHARE = 0.02
"""Largest share of kana in a Chinese text, and of spaces between Chinese characters."""
CHUNK = 1 << 20


def encoding_of(path: Path, settings: FileSettings, source: str, reporter: Reporter) -> str:
    """The name of the encoding to decode a file with.

    Raises:
        UserError: the settings name an unknown encoding, or the file's encoding cannot be determined.
    """
    try:
        codecs.lookup(settings.encoding)
    except LookupError as error:
        raise UserError(f"{source}: {error}; set `encoding` to utf-8, latin-1, gb18030 or another") from error
    if settings.encoding != UTF8:
        return settings.encoding
    with opened(path, source) as stream:
        start = stream.read(4096)
    if marked := next((name for mark, name in MARKS if start.startswith(mark)), None):
        return marked
    _refuse_binary(start, source)
    return UTF8 if settings.decode_errors != "strict" or _is_utf8(path, source) else _by_content(path, source, reporter)


def bad_byte(source: str, error: UnicodeDecodeError, position: int, line: int) -> UnreadableLine:
    """The error for a byte that is invalid in the encoding."""
    name = error.encoding.replace("-sig", "")
    if position < 0 or error.start >= len(error.object):
        return UnreadableLine(f"{source}: line {line} is not {name}; set `encoding`")
    return UnreadableLine(
        f"{source}: byte {error.object[error.start]:#04x} at position {position} is not {name} (line {line});"
        " set `encoding` (latin-1, gb18030, …) or `decode_errors: replace` next to its `source`"
    )


def _refuse_binary(start: bytes, source: str) -> None:
    if start.startswith((b"PAR1", b"ARROW1")):
        name = "parquet" if start.startswith(b"PAR1") else "arrow"
        raise UserError(f"{source}: is a {name} file, not text; set `format: {name}`")
    if start.count(0) > len(start) // 5:
        even, odd = start[::2].count(0), start[1::2].count(0)
        likely = "utf-32" if start.count(0) > len(start) * 0.6 else "utf-16-le" if odd > even else "utf-16-be"
        raise UserError(f"{source}: contains zero bytes, so it is not UTF-8 text; set `encoding`, probably to {likely}")


def _is_utf8(path: Path, source: str) -> bool:
    """Whether the whole file is UTF-8; False if it is ASCII before the first invalid byte. Raises UserError
    otherwise."""
    position, lines, ascii_only, rest = 0, 0, True, b""
    with opened(path, source) as stream:
        while True:
            try:
                chunk = stream.read1(CHUNK)  # type: ignore[attr-defined]
            except DAMAGE as error:
                raise UserError(f"{source}: after line {lines}, {explained(error)}") from error
            data = rest + chunk
            try:
                _, used = codecs.utf_8_decode(data, "strict", not chunk)
            except UnicodeDecodeError as error:
                if ascii_only and data[: error.start].isascii():
                    return False
                line = lines + data[: error.start].count(b"\n") + 1
                raise bad_byte(source, error, position + error.start, line) from error
            if not chunk:
                return True
            ascii_only = ascii_only and data[:used].isascii()
            position, lines, rest = position + used, lines + data[:used].count(b"\n"), data[used:]


def _by_content(path: Path, source: str, reporter: Reporter) -> str:
    """`cp1252` or `gb18030`, with a warning. Raises UserError if the file looks like neither."""
    first: tuple[UnicodeDecodeError, int, int, str] | None = None
    mixed = False
    """Whether some lines are valid UTF-8, which text in another encoding hardly ever is by chance."""
    position, letters, others = 0, 0, set[str]()
    num_non_ascii = 0
    with opened(path, source) as stream:
        for number, line in enumerate(stream, 1):
            letters += len(line)
            if not line.isascii():
                try:
                    line.decode()
                    mixed = True
                except UnicodeDecodeError as error:
                    first = first or (error, position + error.start, number, line.decode("cp1252", "replace").strip())
                found = [c for c in line.decode("cp1252", "replace") if not c.isascii()]
                others.update(found)
                num_non_ascii += len(found)
            position += len(line)
    assert first is not None, "the caller found that the file is not UTF-8"
    error, position, number, sample = first
    not_western = others - WESTERN - PORTUGUESE
    hungarian = others & PORTUGUESE and others & NOT_WITH_PORTUGUESE
    if mixed or not_western or hungarian or num_non_ascii > WESTERN_SHARE * letters:
        if (line := _first_chinese_line(path, source)) is None:
            raise bad_byte(source, error, position, number)
        reporter.warn(
            f"{source} is not UTF-8; it was read as gb18030, in which its first Chinese line is {line[:80]!r}."
            " If that looks wrong, set `encoding` next to its `source`"
        )
        return "gb18030"
    reporter.warn(
        f"{source} is not UTF-8; it was read as cp1252, in which line {number} is {sample[:80]!r}."
        " If that looks wrong, set `encoding` next to its `source`"
    )
    return "cp1252"


def _first_chinese_line(path: Path, source: str) -> str | None:
    """The first line with Chinese characters in gb18030; None if the file does not look like that encoding."""
    first, chinese, common, kana, spaces = None, 0, 0, 0, 0
    with opened(path, source) as stream, io.TextIOWrapper(stream, "gb18030") as text:
        try:
            for line in text:
                if line.isascii():
                    continue
                found = CHINESE.findall(line)
                first = first or (line.strip() if found else None)
                chinese += len(found)
                common += sum(_is_common(character) for character in found)
                kana += len(KANA.findall(line))
                spaces += len(SPACED.findall(line))
        except UnicodeDecodeError:
            return None
    is_chinese = chinese >= LEAST and common >= COMMON_SHARE * chinese and max(kana, spaces) <= ODD_SHARE * chinese
    return first if is_chinese else None


def _is_common(character: str) -> bool:
    try:
        return 0xB0 <= character.encode("gb2312")[0] <= 0xD7
    except UnicodeEncodeError:
        return False
