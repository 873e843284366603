"""The command line of the paper: add runs to the ledger, and write the report from it."""

import argparse
import sys
from pathlib import Path

from wrnn.errors import ConfigError


def main(root: Path, arguments: list[str] | None = None) -> None:
    """Parse the command line and do it.

    Args:
        root: of the project; the configs are in `conf/`, the ledger and the report in `results/`.
        arguments: None is the command line's.

    Raises: ConfigError for folders without a finished run, or where nothing can be written.
    """
    parser = argparse.ArgumentParser(description="The paper's tables and figures from the ledger of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="paper.md, paper.tex and figures/, from the ledger alone")
    write.add_argument("--output", type=Path, default=root / "results", metavar="DIR")
    write.add_argument("--no-figures", action="store_true", help="the tables only")
    add = commands.add_parser("add", help="add finished runs to the ledger")
    add.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, a sweep, or anything above")
    add.add_argument("--weights", action="store_true", help="keep their weights too, for the figures of states")
    for one in (write, add):
        one.add_argument("--ledger", type=Path, default=root / "results" / "ledger", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.command == "add":
        _add(options.folders, options.ledger, options.weights)
    else:
        _write(root, options.ledger, options.output, not options.no_figures)


def _add(folders: list[Path], ledger: Path, weights: bool) -> None:
    """Add each finished run; what cannot be added is said in a line, and the others go on."""
    from wrnn.compare.records import FINISHED, load
    from wrnn.paper import ledger as book

    runs = [run for run in load(folders) if run.state == FINISHED]
    if not runs:
        raise ConfigError(f"{', '.join(map(str, folders))}: no finished run")
    for run in runs:
        try:
            record = book.record(run.folder)
            try:
                print(f"{run.name}: {record.id[:6]} in {book.append(ledger, record)}")
            except ConfigError as error:
                print(f"{run.name}: {error}")
            if weights:
                print(f"{run.name}: weights in {book.keep_weights(ledger, record, run.folder)}")
        except ConfigError as error:
            print(f"warning: {run.name}: {error}", file=sys.stderr)


def _write(root: Path, ledger: Path, output: Path, figures: bool) -> None:
    """Write the report, and say how many cells stand where."""
    from wrnn.files import write_atomically, writing
    from wrnn.paper import report
    from wrnn.paper.cells import experiments_in
    from wrnn.paper.ledger import load

    if not ledger.is_dir():
        raise ConfigError(f"--ledger={ledger}: no such folder")
    found = load(ledger)
    for problem in found.problems:
        print(f"warning: {ledger}/{problem}", file=sys.stderr)
    paper = report.judge(found, experiments_in(root / "conf"))
    with writing(f"--output={output}"):
        if figures:
            from wrnn.paper.figures import draw_all

            draw_all(paper, output / "figures")
        write_atomically(output / "paper.md", report.markdown(paper))
        write_atomically(output / "paper.tex", report.latex(paper))
    print(f"{len(paper.answers)} cells: " + ", ".join(f"{count} {verdict}" for verdict, count in paper.counts.items()))
    print(f"{output / 'paper.md'}, paper.tex" + (f", {output / 'figures'}" if figures else ""))
