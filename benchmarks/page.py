"""The report as one HTML file with its plots inside: nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape

from .plots import as_svg, figures
from .report import LEGEND, Table, grouped, header, table
from .results import Recording
from .sweeps import fit_text, swept

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 2px 10px; text-align: right; white-space: nowrap; }
td, th { border-bottom: 1px solid #8884; }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left; }
td:nth-child(2) { font-weight: 600; }
pre { background: #8882; padding: 0.8em; font-size: 13px; white-space: pre-wrap; }
figure { margin: 1em 0; }
svg { max-width: 100%; height: auto; background: #fff; }
"""


def html_table(found: Table) -> str:
    """One table, its notes and its summary."""
    head, *rows = found.rows
    lines = [f"<h3>{escape(found.title)}</h3>", '<div class="wide"><table>', html_row(head, "th")]
    lines += [html_row(row, "td") for row in rows]
    lines.append("</table></div>")
    lines += [f"<p>{escape(text)}</p>" for text in (*found.notes, found.summary) if text]
    return "\n".join(lines)


def html_row(cells: list[str], tag: str) -> str:
    """One row."""
    inside = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inside}</tr>"


def svg_element(text: str) -> str:
    """An SVG file's root, without the declarations that a page has no place for."""
    return text[text.index("<svg") :]


def page(recording: Recording) -> str:
    """The whole file."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>attn_kernels on {escape(recording.device)}</title>",
        f"<style>{STYLE}</style></head><body>",
        "<h1>attn_kernels: measured</h1>",
        f"<pre>{escape(header(recording.environment))}</pre>",
        f"<p>{escape(LEGEND)}</p>",
        *(f"<figure>{svg_element(as_svg(one))}</figure>" for one in figures(recording).values()),
        *(html_table(table(results)) for results in grouped(recording.results).values()),
    ]
    sweeps = "\n".join(fit_text(results) for results in swept(recording.results).values())
    if sweeps:
        parts += ["<h2>Scaling</h2>", f"<pre>{escape(sweeps)}</pre>"]
    return "\n".join([*parts, "</body></html>", ""])
