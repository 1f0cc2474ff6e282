"""HTML pages in one file: pictures are inside, nothing is fetched from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .9rem; border-bottom: 1px solid #ddd }
td + td { white-space: nowrap }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums } th { text-align: left }
td.words, th.words { text-align: left; white-space: normal }
pre { background: #f6f6f4; padding: 1rem; overflow-x: auto; white-space: pre-wrap } img { max-width: 100% }
.lead { font-size: 1.15rem }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Return a whole HTML document; `sections` are HTML already."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return an HTML table; cells are escaped. The first `words` columns hold words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="words"' if 0 < i < words else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{html.escape(c)}</{tag}>" for kind, c in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(columns, 'th')}</tr>{body}</table>"


def picture(png: bytes, alternative: str) -> str:
    """Return an image that stands inside the page."""
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def origin(command: str, versions: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return HTML that says how something was made: the command, the versions and the machine."""
    facts = {k: v for k, v in {**versions, **machine}.items() if v not in ("", 0)}
    if memory := facts.pop("memory_bytes", 0):
        facts["memory"] = f"{memory / (1 << 30):.1f} GiB"
    for name in ("threads", "cores"):
        if name in facts:
            facts[name] = f"{facts[name]} {name}"
    rows = "".join(
        f'<tr><td>{html.escape(k.replace("_", " "))}</td><td class="words">{html.escape(str(v))}</td></tr>'
        for k, v in facts.items()
    )
    return f"<h2>How this was made</h2><p><code>{html.escape(command)}</code></p><table>{rows}</table>"


def visible(text: str) -> str:
    """Return a text with its control characters made visible, except ends of lines and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
