"""The comparison as one HTML file that needs no network: tables, curves, settings, pictures, failures."""

import base64
from collections.abc import Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from wrnn.compare import figures
from wrnn.compare.groups import Comparison, Task
from wrnn.compare.records import FINISHED, picture
from wrnn.compare.tables import NUMBERS, heading, ranked

# Whatever else might slip in, the browser must not fetch it. Inline scripts are plotly's.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; background: #fff;
  margin: 0 auto; max-width: 1200px; padding: 24px 32px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 21px; margin: 48px 0 4px; border-top: 2px solid #1f2430; padding-top: 16px; }
h3 { font-size: 16px; margin: 28px 0 6px; }
p { margin: 4px 0 10px; max-width: 110ch; overflow-wrap: anywhere; }
a { color: #1450a0; }
.quiet, figcaption { color: #5a6272; }
.scroll { overflow: auto; max-height: 640px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 18px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e6eb; }
th { font-weight: 600; border: 0; white-space: nowrap;
  position: sticky; top: 0; background: #fff; box-shadow: inset 0 -1px #1f2430; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.text { min-width: 4em; max-width: 40em; overflow-wrap: anywhere; }
tr.best td { font-weight: 600; background: #f1f6fd; }
tr.failed td { color: #5a6272; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
"""


def html(comparison: Comparison) -> str:
    """The whole page."""
    runs = comparison.runs
    finished = int(runs["state"].eq(FINISHED).sum())
    links = [f'<a href="#task-{number}">{escape(task.name)}</a>' for number, task in enumerate(comparison.tasks)]
    parts = [
        f"<h1>Comparison of {len(runs)} runs</h1>",
        f'<p class="quiet">{finished} finished, {len(runs) - finished} not. A row is a group of runs that differ in '
        "the seed alone; of several runs with one seed the newest finished one counts.</p>",
        f"<p>Tasks: {' &middot; '.join(links)}</p>",
    ]
    for number, task in enumerate(comparison.tasks):
        parts += _section(comparison, task, number)
    lost = runs[runs["task"].eq("")]
    if len(lost):
        parts += ["<h2>Runs without readable settings</h2>", _table(lost[["folder", "state", "reason"]])]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison of runs</title>\n<style>{_STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(comparison: Comparison, task: Task, number: int) -> list[str]:
    """All that there is of a task."""
    frame = ranked(comparison, task)
    parts = [
        f'<h2 id="task-{number}">{escape(task.name)}</h2>',
        f'<p class="quiet">{len(frame)} groups; {escape(heading(task))}.</p>',
        _table(frame, ["best" if rank == "1" else "" if rank else "failed" for rank in frame["rank"]]),
    ]
    learning = figures.curves(comparison, task)
    if learning:
        parts += ["<h3>Learning curves</h3>", '<p class="quiet">Mean over seeds; the band goes from the lowest seed to '
                  "the highest. Drag to zoom, double-click to return, click a name to hide it.</p>"]  # fmt: skip
        if len(frame) > figures.MOST_CURVES:
            parts.append(f"<p>The best {figures.MOST_CURVES} of {len(frame)} groups are shown.</p>")
        parts.append(_plot(learning, f"curves-{number}"))
    settings = figures.parallel(comparison, task)
    if settings:
        parts += ["<h3>Settings and result</h3>", '<p class="quiet">A line per group; the darker, the better, and the '
                  "best result is at the top of the last axis.</p>", _plot(settings, f"settings-{number}")]  # fmt: skip
    return [*parts, *_waves(comparison, task), *_failures(comparison, task)]


def _waves(comparison: Comparison, task: Task) -> list[str]:
    """The wave picture of the best run that has one."""
    runs = comparison.runs[(comparison.runs["task"] == task.name) & comparison.runs["value"].notna()]
    if runs.empty:
        return []
    best = runs["value"].idxmax() if task.mode == "max" else runs["value"].idxmin()
    image = picture(comparison.records[best])
    if image is None:
        return []
    caption = f"{runs['folder'][best]}, {task.metric} {runs['value'][best]:.4g}"
    data = base64.b64encode(image).decode()
    return [
        "<h3>State of the best run over time</h3>",
        f'<figure><img alt="state over time" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>",
    ]


def _failures(comparison: Comparison, task: Task) -> list[str]:
    """The runs that did not finish."""
    runs = comparison.runs
    failed = runs[(runs["task"] == task.name) & runs["counted"] & runs["state"].ne(FINISHED)]
    if failed.empty:
        return []
    labels = comparison.groups.set_index("group")["label"]
    table = pd.DataFrame({
        "settings": failed["group"].map(labels), "seed": failed["seed"].astype(str), "outcome": failed["state"],
        "reason": failed["reason"], "folder": failed["folder"],
    })  # fmt: skip
    return ["<h3>Runs that did not finish</h3>", _table(table)]


def _table(frame: pd.DataFrame, classes: Sequence[str] = ()) -> str:
    """A table of strings, each row with its class if they are given."""
    kinds = ["number" if name in NUMBERS else "text" for name in frame]
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for kind, name in zip(kinds, frame, strict=True))
    rows = []
    for number, row in enumerate(frame.itertuples(index=False)):
        cells = "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))
        rows.append(f'<tr class="{classes[number] if classes else ""}">{cells}</tr>')
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _plot(figure: go.Figure, name: str) -> str:
    """A figure's part of the page; the name makes the page the same each time."""
    config = {
        "responsive": True,
        "displaylogo": False,
        "showSendToCloud": False,  # plotly 7 has a button that uploads the data
        "plotlyServerURL": "",
        "modeBarButtonsToRemove": ["select2d", "lasso2d"],
    }
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config))
