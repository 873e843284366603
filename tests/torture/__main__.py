"""Hurt real runs and print what survived: `make torture`, or more of one kind, `make torture ARGS="--kill 100"`.

Every case starts a training run as a process of its own, does it harm at a moment that the case's number draws, starts
it again, and compares what is left with a run that nothing happened to. Exit code 1 if anything was lost, or showed a
traceback.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from torture import faults, inputs

KINDS = {**faults.KINDS, "input": inputs.wrong}


def attempt(torture: faults.Torture, kind: str, case: int) -> str:
    """The outcome of one case; what is no success is told at once."""
    try:
        outcome, why = KINDS[kind](torture, case)
    except Exception as error:  # the others go on
        outcome, why = "lost", f"{type(error).__name__}: {error}"
    if outcome not in ("same", "refused" if kind == "input" else ""):
        print(f"{kind} {case}: {outcome}: {why}\n", end="", flush=True)  # in one piece: there are others
    return outcome


def main() -> None:
    """Run the cases that were asked for, two at a time, and print a table."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.splitlines()[0])
    for kind, hurt in KINDS.items():
        what = (hurt.__doc__ or "").splitlines()[0]
        parser.add_argument(f"--{kind}", type=int, metavar="N", help=what)
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="number of the first case, to repeat one")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at a time")
    parser.add_argument("--seed", type=int, default=0, help="of what the cases draw")
    options = parser.parse_args()
    asked = {kind: getattr(options, kind) for kind in KINDS}
    if not any(asked.values()):
        asked = {kind: 0 if kind == "disk" and os.geteuid() else 10 for kind in KINDS}  # only root may mount
    if asked["input"]:
        inputs.cases()  # composed once, here: threads must not
    with tempfile.TemporaryDirectory() as scratch:
        torture = faults.Torture(Path(scratch), options.seed)
        if asked["data"]:
            assert torture.pictures  # made once, here
        print(f"an undisturbed run: {torture.seconds:.1f} s, {torture.operations} file operations", flush=True)
        found = {}
        for kind, count in asked.items():
            with ThreadPoolExecutor(options.jobs) as pool:
                cases = range(options.first, options.first + (count or 0))
                found[kind] = Counter(pool.map(partial(attempt, torture, kind), cases))
    print(f"\n{'':11}{'cases':>7}{'the same':>11}{'refused':>9}{'lost':>6}{'traceback':>11}")
    for kind, outcomes in found.items():
        if outcomes:
            numbers = [outcomes.total(), *(outcomes[outcome] for outcome in faults.OUTCOMES)]
            print(f"{kind:11}{numbers[0]:7}{numbers[1]:11}{numbers[2]:9}{numbers[3]:6}{numbers[4]:11}")
    print("\nthe same: weights, metrics, results and ledger as of the undisturbed run, bit for bit; nothing left over")
    if found.get("input"):
        print(f"input: {inputs.covered()}; the same: it ran with what was asked for")
    if any(outcomes["lost"] or outcomes["traceback"] for outcomes in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
