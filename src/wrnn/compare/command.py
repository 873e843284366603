"""The command line of the comparison."""

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, print a ranked table per task, write the files. Files are the same for the same runs.

    Raises: ConfigError where there is no run that can be read, no run has the metric, or nothing can be written.
    """
    parser = argparse.ArgumentParser(description="Compare runs: seeds are averaged, settings ranked, tasks kept apart.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, a sweep, or anything above")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: comparison/ in the first FOLDER")
    parser.add_argument("--metric", metavar="NAME", help="as in results.json; default: what the task monitors, of test")
    options = parser.parse_args(arguments)

    from wrnn.compare import page, tables  # late, so that --help does not wait for pandas and torch
    from wrnn.compare.groups import compare
    from wrnn.compare.records import FINISHED, load
    from wrnn.files import write_atomically, writing

    comparison = compare(load(options.folders), options.metric)
    tables.show(comparison)
    output = options.output or options.folders[0] / "comparison"
    files = {
        "comparison.csv": tables.groups_csv(comparison),
        "runs.csv": tables.runs_csv(comparison),
        "comparison.md": tables.markdown(comparison),
        "comparison.tex": tables.latex(comparison),
        "index.html": page.html(comparison),
    }
    with writing(f"--output={output}"):
        for name, text in files.items():
            write_atomically(output / name, text)
    states = comparison.runs["state"]
    print(f"{len(states)} runs, {(states == FINISHED).sum()} finished")
    print(f"{output / 'index.html'} and {', '.join(name for name in files if name != 'index.html')}")
