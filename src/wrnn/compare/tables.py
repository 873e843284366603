"""The comparison as text: on the terminal, as CSV in full precision, as Markdown and as LaTeX."""

from collections.abc import Callable

import pandas as pd
from rich.console import Console
from rich.table import Table

from wrnn.compare.groups import Comparison, Task

NUMBERS = ("rank", "mean", "sd", "n", "best", "solved", "solved_step", "gave_up", "seconds", "failed")
"""Columns that are set flush right."""

_SHORT: dict[str, Callable[[float], str]] = {
    **dict.fromkeys(("rank", "n", "solved", "solved_step", "gave_up", "failed"), "{:.0f}".format),
    **dict.fromkeys(("mean", "best"), "{:.4g}".format),
    "sd": "{:.2g}".format,
    "seconds": lambda seconds: f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}",
}
MARKDOWN = str.maketrans({**{letter: f"\\{letter}" for letter in "\\`*|"}, "&": "&amp;", "<": "&lt;"})
LATEX = str.maketrans({
    **{letter: f"\\{letter}" for letter in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
})  # fmt: skip


def heading(task: Task) -> str:
    """What a table ranks by."""
    return f"{task.metric}, {'higher' if task.mode == 'max' else 'lower'} is better; mean and sd over n seeds"


def ranked(comparison: Comparison, task: Task) -> pd.DataFrame:
    """The table of a task as it is read: numbers rounded, columns in which nothing stands left out."""
    rows = comparison.groups[comparison.groups["task"] == task.name]
    frame = rows[["rank", *task.settings, *NUMBERS[1:], "why"]].astype(object)
    for name, short in _SHORT.items():
        frame[name] = ["" if pd.isna(value) else short(float(value)) for value in frame[name]]
    for name in ("solved", "solved_step", "gave_up", "why"):
        if frame[name].isin(["", "0"] if name == "gave_up" else [""]).all():
            del frame[name]
    return frame.reset_index(drop=True)


def show(comparison: Comparison) -> None:
    """Print the ranked tables."""
    # File names and reasons may hold what looks like markup. Off a terminal, lines are not cut.
    console = Console(width=None if Console().is_terminal else 200, markup=False, highlight=False, emoji=False)
    for task in comparison.tasks:
        frame = ranked(comparison, task)
        table = Table(title=f"{task.name}: {heading(task)}", title_justify="left")
        for name in frame:
            table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
        for row in frame.itertuples(index=False):
            table.add_row(*row)
        console.print(table)


def groups_csv(comparison: Comparison) -> str:
    """A row per group, all tasks, full precision."""
    return str(comparison.groups.drop(columns="label").to_csv(index=False, lineterminator="\n"))


def runs_csv(comparison: Comparison) -> str:
    """A row per run, also of those that cannot be read."""
    return str(comparison.runs.to_csv(index=False, lineterminator="\n"))


def markdown(comparison: Comparison) -> str:
    """A heading and a table per task."""
    parts = []
    for task in comparison.tasks:
        frame = escaped(ranked(comparison, task), MARKDOWN)
        align = ["right" if name in NUMBERS else "left" for name in frame]
        # without disable_numparse 1e-3 would become 0.001, not what the config says
        table = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
        parts.append(f"## {task.name.translate(MARKDOWN)}\n\n{heading(task).translate(MARKDOWN)}\n\n{table}\n")
    return "\n".join(parts)


def latex(comparison: Comparison) -> str:
    """A `table` per task, for the package booktabs."""
    parts = []
    for task in comparison.tasks:
        frame = ranked(comparison, task)
        columns = "".join("r" if name in NUMBERS else "l" for name in frame)
        caption = f"{task.name}: {heading(task)}.".translate(LATEX)
        styler = escaped(frame, LATEX).style.hide(axis="index")
        parts.append(styler.to_latex(hrules=True, column_format=columns, caption=caption, position_float="centering"))
    return "\n".join(parts)


def escaped(frame: pd.DataFrame, letters: dict[int, str]) -> pd.DataFrame:
    """Replace letters in cells and headings."""
    return frame.map(lambda cell: cell.translate(letters)).rename(columns=lambda name: name.translate(letters))
