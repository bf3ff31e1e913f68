"""One self-contained HTML page: its head and style, tables, and pictures that travel in it."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

_WIDEST = 1400  # pixels of an embedded picture
_COLUMNS = 10  # of a table beside the first
_STYLE = """
:root { color: #1d2126; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 78rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 2px solid #d5d9de; } h3 { font-size: 1.05rem; }
a { color: #0b4f96; } .skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; background: #fff; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
.wide { overflow-x: auto; margin: .8rem 0; } .wide:focus { outline: 2px solid #0b4f96; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; max-width: calc(100vw - 2rem); }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d5d9de; text-align: right; vertical-align: top; background: #fff; }
th, td { overflow-wrap: normal; }
th:first-child, .text { text-align: left; } td.text { min-width: 8rem; overflow-wrap: anywhere; } thead th { background: #f1f3f5; }
th:first-child { position: sticky; left: 0; min-width: 8.5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0 0 1rem; break-inside: avoid; } figcaption { font-size: .9rem; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: #3d4450; } svg polyline { fill: none; stroke-width: 2; }
svg .grid { stroke: #e3e6ea; } svg .reference { stroke: #3d4450; stroke-dasharray: 1 4; stroke-width: 2; }
img { max-width: 100%; height: auto; } .key svg { width: 3rem; height: .7rem; } .key li { margin-right: 1.2rem; display: inline-block; }
.key ul { padding: 0; list-style: none; } .note { color: #3d4450; font-size: .9rem; }
@media screen and (max-width: 40rem) { th:first-child { max-width: 45vw; overflow-wrap: anywhere; }
  .wide img { max-width: none; width: min(var(--width), 44rem); } }
@media print { caption { max-width: none; } body { max-width: none; padding: 0; } nav, .skip { display: none; } .wide { overflow: visible; }
  h2 { margin-top: 1.2rem; } h2, h3, caption, thead, .key { break-after: avoid; } tr, .note { break-inside: avoid; }
  table { font-size: .7rem; } th, td { padding: .15rem .3rem; overflow-wrap: anywhere; } td.text { min-width: 4.4em; }
  .charts { grid-template-columns: 1fr 1fr; } th:first-child { position: static; min-width: 9em; }
  img { max-height: 22cm; width: auto; } }
"""


def escape(text: object) -> str:
    """Text for HTML; bytes of file names that are no UTF-8 become escapes.

    >>> escape("a < b")
    'a &lt; b'
    """
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode())


def breakable(text: object) -> str:
    """Text for HTML whose long names may be broken after their dots, slashes and other marks, but not inside numbers.

    >>> breakable("model.drop_path"), breakable("0.05")
    ('model.<wbr>drop_<wbr>path', '0.05')
    """
    return re.sub(r"([/,:=]|(?<=[a-z])[._](?=[a-z]))(?=.)", r"\1<wbr>", escape(text))


def page(title: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page. A section is (identifier, heading, HTML)."""
    links = "".join(f'<li><a href="#{identifier}">{escape(heading)}</a></li>' for identifier, heading, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{identifier}"><h2 id="{identifier}">{escape(heading)}</h2>{content}</section>'
        for identifier, heading, content in sections
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
        f'<a class="skip" href="#main">To the content</a><header><h1>{escape(title)}</h1></header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main id="main">{body}</main></body></html>\n'
    )


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], text: bool = False) -> str:
    """A table whose first cells are the headings of their rows. It scrolls by itself where a screen is narrow; `text` aligns left.

    More columns than fit on a printed page become several tables below each other, all with the first column.
    """
    lines, others = list(rows), len(columns) - 1
    parts = max(1, -(-others // _COLUMNS))
    cuts = [1 + others * part // parts for part in range(parts + 1)]
    return "".join(
        _table(
            caption if parts == 1 else f"{caption} ({part} of {parts})",
            [columns[0], *columns[first:last]],
            [[line[0], *line[first:last]] for line in lines],
            text,
        )
        for part, (first, last) in enumerate(itertools.pairwise(cuts), 1)
    )


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], text: bool) -> str:
    kind = ' class="text"' if text else ""
    head = "".join(f'<th scope="col"{kind}>{breakable(name)}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{breakable(first)}</th>' + "".join(f"<td{kind}>{breakable(cell)}</td>" for cell in cells) + "</tr>"
        for first, *cells in rows
    )
    return _wide(caption, f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>")


def _wide(label: str, content: str) -> str:
    """A region that scrolls sideways where its content is wider than the screen; the keyboard reaches it."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def note(text: str) -> str:
    """A paragraph in smaller letters."""
    return f'<p class="note">{escape(text)}</p>'


def picture(path: Path, alternative: str) -> str:
    """A picture in the page itself, at most 1,400 pixels wide, as WebP. Raises OSError for a file that is no picture."""
    with Image.open(path) as original:
        image = original.convert("RGB")
    image.thumbnail((_WIDEST, 20 * _WIDEST))
    image.save(file := io.BytesIO(), "WEBP", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}" style="--width: {image.width}px"'
    shown = f'<img src="data:image/webp;base64,{data}" {size} alt="{escape(alternative)}">'
    return f"<figure>{_wide(alternative, shown)}<figcaption>{escape(alternative)}</figcaption></figure>"
