"""Text files with a name or path a line: how lines end, what is a comment, and what is refused."""

from __future__ import annotations

import os
import re

from sere_jax.buckets import is_address, read_bytes
from sere_jax.data.sources.example import SourceError
from sere_jax.writing import place

_COMMENT = re.compile(r"#( .*)?", re.DOTALL)
_ESCAPED = re.compile(r"\\+# ")


def read_lines(spec: str, file: str) -> list[str]:
    """The lines of a text file that are neither empty nor comments.

    A comment is a line that begins with `# ` (a blank after the sign), or a lone `#`. A name that begins so is written with a backslash
    before it, which is dropped. A byte order mark is skipped, and lines end with LF or CRLF. Blanks at the ends of a line stay. Bytes that
    are not UTF-8 stay too, as in Python's file names. Raises SourceError for a file that cannot be read, is UTF-16, or has a NUL.
    """
    try:
        data = read_bytes(file) if is_address(file) else place(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the list's own name
        raise SourceError(f"{spec!r}: the list {file!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError(f"{spec!r}: {file} is UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8 {file}")
    lines = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if b"\0" in raw:
            raise SourceError(f"{spec!r}: line {number} of {file} has a NUL byte, which no name has; expected a text file")
        line = os.fsdecode(raw.removesuffix(b"\r"))
        if line.strip() and not _COMMENT.fullmatch(line):
            lines.append(line[1:] if _ESCAPED.match(line) else line)
    return lines


def read_names(spec: str, file: str) -> list[str]:
    """The names in a text file, one a line, without blanks at their ends; see `read_lines`. Raises SourceError for none or one twice."""
    names = [line.strip() for line in read_lines(spec, file)]
    if not names:
        raise SourceError(f"{spec!r}: {file} is an empty list; expected a name a line")
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise SourceError(f"{spec!r}: {file} names {', '.join(repeated[:5])} more than once")
    return names
