"""Plotly figures of the comparison: learning curves, and settings as parallel coordinates.

Text in a figure is read as HTML by plotly, links included, so what comes from files is escaped here.
"""

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from wrnn.compare.groups import Comparison, Task
from wrnn.compare.records import FINISHED, curve

MOST_CURVES = 12
COLOURS = (
    "#1f5fbf", "#d9480f", "#2b8a3e", "#a61e78", "#7a5c00", "#0b7285", "#c92a2a", "#5f3dc4", "#66a80f", "#868e96",
    "#e8890c", "#3b3f4a",
)  # fmt: skip
FEW = 8
"""Up to so many values of a setting, an axis has one tick for each, evenly apart."""

_SHADES = [[0.0, "#d3dce8"], [0.5, "#6f9bc8"], [1.0, "#0b2f66"]]
_LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2430"},
    "hoverlabel": {"namelength": -1},
}


def curves(comparison: Comparison, task: Task) -> go.Figure | None:
    """The monitored metric over steps, a line per group with a band from its lowest seed to its highest.

    Between validations a seed's curve is interpolated; the mean is over the seeds that reach a step. None without any.
    """
    groups = comparison.groups[comparison.groups["task"] == task.name].head(MOST_CURVES)
    figure = go.Figure()
    shown, extremes = 0, []
    for colour, (_, group) in zip(COLOURS, groups.iterrows(), strict=False):
        runs = comparison.runs[comparison.runs["group"].eq(group["group"]) & comparison.runs["counted"]]
        if group["n"]:
            runs = runs[runs["state"] == FINISHED]
        seeds = [curve(comparison.records[index], task.curve) for index in runs.index]
        seeds = [seed for seed in seeds if len(seed[0])]
        if not seeds:
            continue
        shown += 1
        steps = np.unique(np.concatenate([steps for steps, _ in seeds]))
        grid = pd.DataFrame([np.interp(steps, *seed, left=np.nan, right=np.nan) for seed in seeds])
        grid = grid.where(np.isfinite(grid))
        low, high, count = grid.min(), grid.max(), grid.count()
        extremes += [*low[low > 0], *high[high > 0]]
        style = {"legendgroup": group["group"], "x": steps, "mode": "lines"}
        band = {**style, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        if len(seeds) > 1:
            figure.add_scatter(y=high, **band)
            figure.add_scatter(y=low, fill="tonexty", fillcolor=_faint(colour), **band)
        name = _text(group["label"]) + ("" if group["n"] else " (no finished run)")
        figure.add_scatter(
            y=grid.mean(),
            name=name,
            customdata=np.stack([low, high, count], axis=1),
            hovertemplate="step %{x:,}: %{y:.4g}<br>%{customdata[0]:.4g} to %{customdata[1]:.4g}, "
            "n = %{customdata[2]}<extra>%{fullData.name}</extra>",
            line={"color": colour, "width": 2, "dash": "solid" if group["n"] else "dot"},
            **style,
        )
    if not shown:
        return None
    legend = 22 * shown + 10  # pixels; below the plot, so that it never covers a curve
    figure.update_layout(
        **_LAYOUT,
        height=485 + legend,
        margin={"l": 70, "r": 20, "t": 20, "b": 75 + legend},
        legend={"orientation": "v", "x": 0, "xanchor": "left", "y": -70 / 390, "yanchor": "top"},
        showlegend=True,
        xaxis={"title": {"text": "optimizer steps"}, "rangemode": "tozero"},
        yaxis={"title": {"text": _text(task.curve)}, **_value_axis(extremes, task.mode)},
    )
    return figure


def _value_axis(values: list[float], mode: str) -> dict[str, str | int]:
    """A logarithmic axis for what goes down, with as many ticks as fit; plotly's own choice crowds the small digits."""
    if mode == "max":
        return {"type": "linear"}
    span = np.log10(max(values)) - np.log10(min(values)) if values else 0.0  # decades
    return {"type": "log"} if span < 0.7 else {"type": "log", "dtick": "D2" if span < 4 else 1}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def parallel(comparison: Comparison, task: Task) -> go.Figure | None:
    """A line per ranked group through its settings to its mean, the best darkest and on top. None below two groups.

    Drawn as ordinary lines: plotly's own parallel coordinates need WebGL, which not every browser has.
    """
    groups = comparison.groups[(comparison.groups["task"] == task.name) & comparison.groups["n"].gt(0)]
    settings = [name for name in task.settings if groups[name].nunique() > 1]
    if len(groups) < 2 or not settings:
        return None
    axes = [_scale(list(groups[name])) for name in settings]
    means = list(groups["mean"])
    axes.append(_along(means, logarithmic=task.mode == "min" and min(means) > 0, flipped=task.mode == "min"))
    at = axes[-1][0]
    titles = [*settings, task.metric]
    figure = go.Figure()
    for index in reversed(range(len(groups))):  # the best last, on top
        group = groups.iloc[index]
        colour = sample_colorscale(_SHADES, at[index])[0]
        # lines that share a setting run side by side instead of one hiding all others
        aside = 0.05 * (index / (len(groups) - 1) - 0.5)
        spread = "" if np.isnan(group["sd"]) else f", sd {group['sd']:.2g}"
        figure.add_scatter(
            x=list(range(len(axes))),
            y=[position[index] - aside for position, _ in axes[:-1]] + [at[index]],
            mode="lines+markers",
            line={"color": colour, "width": 3 if index == 0 else 1.8},
            marker={"color": colour, "size": 6},
            name=_text(f"{group['rank']}. {group['label']}"),
            text=[f"{_text(task.metric)}: mean {group['mean']:.4g}{spread}, n = {group['n']}"] * len(axes),
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    notes = []
    for x, (title, (_, ticks)) in enumerate(zip(titles, axes, strict=True)):
        figure.add_shape(type="line", x0=x, x1=x, y0=-0.04, y1=1.04, line={"color": "#1f2430", "width": 1})
        notes.append({"x": x, "y": 1.06, "text": f"<b>{_text(_cut(title))}</b>", "yanchor": "bottom"})
        last = x == len(axes) - 1
        for y, label in ticks:
            side = {"xanchor": "left", "xshift": 8} if last else {"xanchor": "right", "xshift": -8}
            notes.append({"x": x, "y": y, "text": _text(_cut(label)), "bgcolor": "rgba(255,255,255,0.8)", **side})
    figure.update_layout(
        **_LAYOUT,
        height=430,
        margin={"l": 130, "r": 90, "t": 40, "b": 20},
        showlegend=False,
        hovermode="closest",
        annotations=[{"showarrow": False, **note} for note in notes],
        xaxis={"visible": False, "range": [-0.02, len(axes) - 0.98]},
        yaxis={"visible": False, "range": [-0.08, 1.12]},
    )
    return figure


Axis = tuple[list[float], list[tuple[float, str]]]
"""Where each group is on an axis from 0 to 1, and the axis' ticks: place and label."""


def _scale(values: list[str]) -> Axis:
    """An axis for a setting. Few values, or values that are no numbers, stand evenly apart."""
    distinct = sorted(set(values), key=_in_order)
    if len(distinct) > FEW and all(map(_is_number, distinct)):
        numbers = [float(value) for value in values]
        return _along(numbers, logarithmic=min(numbers) > 0 and max(numbers) > 50 * min(numbers))
    places = {value: index / (len(distinct) - 1) for index, value in enumerate(distinct)}
    return [places[value] for value in values], [(place, value or "(unset)") for value, place in places.items()]


def _along(numbers: list[float], logarithmic: bool, flipped: bool = False) -> Axis:
    """An axis for numbers, with ticks at its ends and three between."""
    scaled = np.log10(numbers) if logarithmic else np.asarray(numbers)
    low, high = float(scaled.min()), float(scaled.max())
    places = (scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5)
    ticks = []
    for place in (0.0, 0.25, 0.5, 0.75, 1.0) if high > low else (0.5,):
        value = low + place * (high - low)
        ticks.append((1 - place if flipped else place, f"{10**value if logarithmic else value:.3g}"))
    return list(1 - places if flipped else places), ticks


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _in_order(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    return (False, float(text), text) if _is_number(text) else (True, 0.0, text)


def _cut(text: str) -> str:
    return text if len(text) <= 22 else f"{text[:21]}\N{HORIZONTAL ELLIPSIS}"


def _text(text: str) -> str:
    return escape(text, quote=False)
