"""All cores under one protocol: the sweep `zoo`, and the table of what it found."""

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wrnn.compare.records import FINISHED, Run, load
from wrnn.compare.tables import MARKDOWN
from wrnn.errors import ConfigError
from wrnn.files import read_json, write_atomically, writing
from wrnn.runs import ENVIRONMENT

TRAIN = Path(__file__).parents[1] / "train.py"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done of the sweep and write the table; exit code 5 where some runs did not finish.

    Raises: ConfigError where none did, or a file cannot be used; then nothing is written.
    """
    parser = argparse.ArgumentParser(
        description="Every core on adding T=100 and copy T=30 for a minute each, or on what the words say, as a table."
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="more for the sweep, e.g. trainer.max_time=...")
    parser.add_argument("--folder", type=Path, default=Path("runs/zoo"), help="of the sweep")
    parser.add_argument("--longer", type=Path, metavar="FOLDER", help="runs of other budgets, for a second table")
    parser.add_argument("--output", type=Path, default=Path("results/zoo.md"), metavar="FILE")
    options = parser.parse_args(arguments)
    command = ["sweep=zoo", "hydra/launcher=local", f"hydra.sweep.dir={options.folder}", *options.words]
    done = subprocess.run([sys.executable, str(TRAIN), "-m", *command])
    if done.returncode not in (0, 5):  # 5: the table says which did not finish
        raise SystemExit(done.returncode)
    longer = [] if options.longer is None else ["--longer LONGER"]
    words = " ".join(["python src/zoo.py --folder FOLDER --output FILE", *longer, *options.words])
    runs = load([options.folder])
    if not any(run.state == FINISHED for run in runs):
        raise ConfigError(f"{options.folder}: no run has finished, see above; {options.output} was left as it is")
    parts = [_INTRODUCTION.format(command=words, facts=_facts(runs)), *tables(runs)]
    if options.longer:
        runs = load([options.longer])
        told = "Runs in LONGER: `python src/train.py model=... task=...` and the words below."
        parts.append(f"## Other budgets\n\n{told}\n{_facts(runs)}\n")
        parts += tables(runs, level="###", words=True)
    with writing(f"--output={options.output}"):
        write_atomically(options.output, "\n".join(parts))
    print(options.output)
    if done.returncode:
        raise SystemExit(done.returncode)


_INTRODUCTION = """# Every core under one budget

`{command}`

{facts}
As many runs at a time as this machine has GPUs, else cores. Rates and sizes are those of `conf/model` and
`conf/pairing`, mostly not tuned: this is what runs and how fast, not which model is best.
"""


def tables(runs: Sequence[Run], level: str = "##", words: bool = False) -> list[str]:
    """A heading and a Markdown table for each task, the best first; with the words of each run's command if asked."""
    parts = []
    for task in sorted({run.config.task.name for run in runs if run.config}):
        mine = [run for run in runs if run.config and run.config.task.name == task]
        first = mine[0].config
        assert first is not None
        frame = pd.DataFrame([_row(run) | ({"words": _words(run)} if words else {}) for run in mine])
        frame = frame.sort_values("value", ascending=first.task.monitor.mode == "min", na_position="last")
        frame = frame.drop(columns="value").rename(columns=lambda name: name.translate(MARKDOWN))
        align = ["left" if name in ("model", "words", "ended") else "right" for name in frame]
        if frame["ended"].eq("").all():
            align.pop(list(frame).index("ended"))
            frame = frame.drop(columns="ended")
        title = f"{level} {task}: {first.task.monitor.metric}, best over the run{_chance(first)}"
        parts.append(f"{title}\n\n{frame.to_markdown(index=False, disable_numparse=True, colalign=align)}\n")
    return parts


def _row(run: Run) -> dict[str, Any]:
    assert run.config is not None
    found, metric = run.results, run.config.task.monitor.metric
    value = found.get(f"best_{metric}", found.get(metric, math.nan))
    row: dict[str, Any] = {
        "model": run.config.model.name,
        "parameters": f"{found['parameters_total']:,}" if "parameters_total" in found else "",
        "without biases": f"{found['parameters_weights']:,}" if "parameters_weights" in found else "",
        "steps": f"{found.get('steps', 0):,}",
        "steps/s": f"{found['steps_per_second']:.3g}" if "steps_per_second" in found else "",
        "seconds": f"{found.get('seconds', 0):,.0f}",
        "validation": "" if math.isnan(value) else f"{value:.3g}",
    }
    if "val/accuracy" in found:
        row["accuracy at the end"] = f"{found['val/accuracy']:.3f}"
    if "solved_step" in found:
        row["solved at"] = "" if found["solved_step"] is None else f"{found['solved_step']:,}"
    ended = "" if run.state == FINISHED else f"{run.state}: {run.reason}"
    return {**row, "value": value, "ended": ended.translate(MARKDOWN)}


def _words(run: Run) -> str:
    """What the command said beyond model, task and places."""
    first = (read_json(run.folder / ENVIRONMENT) or {"starts": [{"command": []}]})["starts"][0]
    usual = ("model=", "task=", "paths.", "trainer=", "callbacks.progress.")
    return " ".join(f"`{word}`" for word in first["command"][1:] if not word.startswith(usual))


def _chance(config: Any) -> str:
    """What a model scores that remembers nothing."""
    if config.task.name == "adding":
        return "; without memory 0.167"
    if config.task.name == "copy":
        length = config.task.datamodule.delay + 20
        return f"; without memory {10 * math.log(8) / length:.3f}"
    return ""


def _facts(runs: Sequence[Run]) -> str:
    """Commit, seeds, hardware of the runs, each named once."""
    starts = [start for run in runs for start in (read_json(run.folder / ENVIRONMENT) or {}).get("starts", [])]

    def each(*values: str) -> str:
        return ", ".join(dict.fromkeys(values))

    states = [s["git"] or {"commit": "unknown", "changed": False} for s in starts]  # none outside a checkout
    commits = each(*(f"{git['commit'][:7]}{' (changed)' if git['changed'] else ''}" for git in states))
    where = [s["hardware"] for s in starts]
    cpus = each(*(place["gpu"] or f"{place['cpu']}, {place['threads']} thread" for place in where))
    seeds, torch = each(*(str(s["seeds"]["seed"]) for s in starts)), each(*(s["versions"]["torch"] for s in starts))
    return f"Commit {commits}; seed {seeds}; {cpus} a run; torch {torch}."
