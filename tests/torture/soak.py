"""Does anything grow? Short runs one after the other in one process, and a sweep of many jobs.

    python -m torture.soak --minutes 20 --jobs 100

Exit code 1 if memory, open files or threads have grown, or a job of the sweep has not finished.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from torture.faults import TINY
from torture.processes import ROOT
from wrnn import schema
from wrnn.training import train

SETTLED = 30  # runs after which all that is loaded or compiled once has been
GROWTH = 0.05  # of the memory, which is as much as it goes up and down
SHORT = ("trainer.max_steps=20", "callbacks.resume_point.every_minutes=0.01")
KINDS = (
    (),
    ("task=adding", "task.datamodule.sequence_length=20", "~task.datamodule.delay"),
    ("model=irnn", "~model.core.num_channels", "~model.core.ring_size", "model.core.hidden_size=9"),
    ("recurrence=torch", "scheduler=plateau"),
    ("logger=csv", "callbacks=record_states"),
)


def now() -> tuple[float, int, int]:
    """Memory of this process in MiB, its open files, its threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def words(kind: tuple[str, ...]) -> list[str]:
    """The words of a tiny run of this kind; those that it takes out are left out."""
    gone = {word[1:] for word in kind if word.startswith("~")} | {word.split("=")[0] for word in kind}
    return [
        word for word in (*TINY[1:], *SHORT) if word.split("=")[0] not in gone and not word.startswith("paths.")
    ] + [word for word in kind if not word.startswith("~")]


def soak(minutes: float, scratch: Path) -> bool:
    """Train for some minutes, run after run; prints and judges what has grown."""
    end, runs, samples = time.monotonic() + 60 * minutes, 0, []
    kinds = cycle(KINDS)
    while time.monotonic() < end or len(samples) < SETTLED + 2:
        cfg = schema.compose_config(*words(next(kinds)), f"paths.run_dir={scratch}/{runs}", f"seed={runs}")
        with contextlib.redirect_stdout(io.StringIO()):
            train(cfg)
        runs += 1
        samples.append(now())
        if runs % 50 == 0:
            print(
                f"{runs} runs: {samples[-1][0]:.0f} MiB, {samples[-1][1]} files, {samples[-1][2]} threads", flush=True
            )
    first, last = samples[SETTLED], samples[-1]
    print(f"\n{minutes:g} minutes, {runs} runs in one process; after run {SETTLED + 1} and at the end")
    for name, before, after in zip(("memory, MiB", "open files", "threads"), first, last, strict=True):
        print(f"{name:12}{before:10.0f}{after:10.0f}")
    return last[0] <= first[0] * (1 + GROWTH) and last[1] <= first[1] and last[2] <= first[2]


def sweep(jobs: int, scratch: Path) -> bool:
    """A sweep of many jobs; prints and judges how many have finished."""
    short = [word for word in TINY if not word.startswith(("paths.", "callbacks."))]
    command = [*short, "trainer.max_steps=10", f"seed=range({jobs})", "hydra/launcher=local"]
    command += ["hydra.sweep.dir=sweep", "--multirun"]
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]], cwd=scratch, capture_output=True, text=True
    )
    outcomes = [json.loads(path.read_text())["outcome"] for path in scratch.glob("sweep/*/outcome.json")]
    finished = outcomes.count("finished")
    print(f"a sweep of {jobs} jobs: {finished} finished, exit code {done.returncode}", flush=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:])
    return finished == jobs and done.returncode == 0


def main() -> None:
    """Soak, then sweep."""
    parser = argparse.ArgumentParser(prog="torture.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=100)
    options = parser.parse_args()
    if options.minutes <= 0 and options.jobs <= 0:
        parser.error("nothing to do: --minutes or --jobs must be more than 0")
    with tempfile.TemporaryDirectory() as folder:
        good = [soak(options.minutes, Path(folder)) if options.minutes > 0 else True]
        good += [sweep(options.jobs, Path(folder)) if options.jobs > 0 else True]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
