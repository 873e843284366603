"""All that wants a GPU, in one command, for a machine that is at hand for minutes and has no network.

Steps, each a process of its own with what it prints in a log, in the order of what they are worth:
- `tests`: the kernels against the readable loop, fused Adam, CUDA graphs;
- `bench`: a training step of wrnn at psMNIST's size by every variant of `wrnn.benchmark` but `compiled`;
- `epoch`: one epoch of psMNIST with the paper's settings through `src/train.py`, and again under CUDA graphs;
- `bench_all`: the other tasks and the dense core;
- `profile`: what limits the two kernels, by Nsight Compute if it is installed.

A step that would not fit into the time left is left out or cut; what it wrote stays. `tuned.json` has the choices that
Triton's tuner tried at each size, with their milliseconds. Without a GPU, all steps but the
last run on the CPU at a tiny size, so that the command can be rehearsed; no figure of such a run means anything.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NEEDED = (
    "torch", "lightning", "torchmetrics", "torchvision", "hydra", "omegaconf", "filelock", "matplotlib", "rich",
    "pytest", "pytest_timeout",
)  # fmt: skip
SECONDS = {"tests": 180, "bench": 150, "epoch": 100, "bench_all": 600, "profile": 240}
"""Most that a step may take."""
STEPS = tuple(SECONDS)


@dataclass
class Session:
    """Where results go, until when, and what came of the steps so far."""

    folder: Path
    deadline: float
    gpu: str | None
    results: list[dict[str, Any]] = field(default_factory=list)

    def run(self, step: str, command: Sequence[str | Path], most: float | None = None) -> bool:
        """Run a command, its output added to the log of the step; return whether it ended well and in time."""
        seconds = min(most or SECONDS[step], self.deadline - time.monotonic())
        with (self.folder / f"{step}.log").open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            try:
                code = process.wait(max(seconds, 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too, or they would go on using the GPU
                process.wait()
                log.write(f"\ncut after {seconds:.0f} s\n")
                return False
        return code == 0

    def last_line(self, step: str) -> str:
        """The last line of a step's log."""
        lines = (self.folder / f"{step}.log").read_text().strip().splitlines()
        return lines[-1].strip("= ") if lines else ""

    def note(self, step: str, ended_well: bool, result: str, started: float, details: Any = None) -> None:
        """Keep what came of a step, on disk at once."""
        state = "done" if ended_well else "FAILED"
        seconds = round(time.monotonic() - started)
        self.results.append({"step": step, "state": state, "seconds": seconds, "result": result, "details": details})
        facts = {"gpu": self.gpu, "steps": self.results}
        (self.folder / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(f"{step}: {state}; {result}", flush=True)


def tests(session: Session) -> None:
    """The kernels' tests."""
    started = time.monotonic()
    files = ["tests/test_triton.py", "tests/test_module.py"]
    marks = "not slow" if session.gpu else "not slow and not gpu"
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", marks]
    pytest += ["-p", "no:benchmark"]  # where pytest-benchmark is installed, it warns under xdist
    if session.gpu and importlib.util.find_spec("xdist"):
        pytest += ["-n", "8"]  # compiling takes most of the time
    good = session.run("tests", [*pytest, *files])
    session.note("tests", good, session.last_line("tests"), started)


def bench(session: Session) -> None:
    """A step of wrnn at psMNIST's size, by all but the compiler that may take minutes."""
    variants = ["--variant", "released", "graphed", "eager", "torch", "triton", "replayed", "tf32"]
    _bench(session, "bench", ["--model", "wrnn", "--task", "psmnist", *variants], ["--task", "copy100"])


def bench_all(session: Session) -> None:
    """All sizes, both cores."""
    _bench(session, "bench_all", ["--repeats", "5"], ["--task", "adding"])


def _bench(session: Session, step: str, real: list[str], rehearsal: list[str]) -> None:
    started, output = time.monotonic(), session.folder / f"{step}.json"
    if not session.gpu:
        small = ["--set", "task.datamodule.batch_size=2", "model=wrnn", "model.core.num_channels=2"]
        variants = ["--model", "wrnn", "--variant", "released", "eager", "torch", "--repeats", "1"]
        rehearsal = [*rehearsal, *variants, *small]
    good = session.run(
        step, [sys.executable, "src/bench.py", "--output", output, *(real if session.gpu else rehearsal)]
    )
    rows = json.loads(output.read_text())["rows"] if output.is_file() else []
    lines = [
        f"{row['model']} {row['task']} {row['variant']} "
        + (row["error"] or f"{row['milliseconds']:.2f} ms, {row['ratio']:.3f} of released, {row['share']:.0%} of peak")
        for row in rows
        if row["variant"] not in ("eager", "compiled")
    ]
    session.note(step, good, "; ".join(lines) or session.last_line(step), started)


def epoch(session: Session) -> None:
    """One epoch of psMNIST through the framework, without and with CUDA graphs."""
    options = ["model=wrnn", "task=psmnist", "logger=csv", "trainer.max_epochs=1"]
    if not session.gpu:
        options += ["trainer=cpu", "model.core.num_channels=2", "task.datamodule.batch_size=4"]
        options += ["trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    from wrnn.data import MNIST_FILES  # late, as torch is

    raw = Path(os.environ.get("WRNN_DATA_DIR") or ROOT / "data") / "MNIST" / "raw"
    if lacking := [name for name in MNIST_FILES if not (raw / name).is_file()]:
        if session.gpu:
            told = f"no MNIST: {raw}/{lacking[0]} is not there; set WRNN_DATA_DIR"
            session.note("epoch", False, told, time.monotonic())
            return
        options += ["images=fake_mnist", "task.datamodule.num_val=8"]
    for name, more in (("epoch", []), ("epoch_graphs", ["cuda_graphs=true"])):
        if more and not session.gpu:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as run:
            command = [sys.executable, "src/train.py", *options, *more, f"paths.run_dir={run}/run"]
            good = session.run("epoch", command)
            found = Path(run) / "run" / "results.json"
            got = json.loads(found.read_text()) if found.is_file() else {}
        result = session.last_line("epoch")
        if good:
            result = f"{got['steps']} steps in {got['seconds']:.1f} s, {got['steps_per_second']:.1f} steps/s, "
            result += f"test accuracy {got['test/accuracy']:.4f}"
        session.note(name, good, result, started, got)


def profile(session: Session) -> None:
    """Counters of both kernels at psMNIST's size; the tuner has made its choice by now."""
    started, ncu = time.monotonic(), shutil.which("ncu")
    if not session.gpu or not ncu:
        session.note("profile", True, "left out: no GPU or no ncu", started)
        return
    sections = ["SpeedOfLight", "SchedulerStats", "WarpStateStats", "Occupancy", "MemoryWorkloadAnalysis"]
    counters = [word for name in sections for word in ("--section", name)]
    bench = ["src/bench.py", "--model", "wrnn", "--task", "psmnist", "--variant", "triton", "--repeats", "1"]
    kernels = ["-k", "regex:advance|go_back", "--launch-count", "4"]
    good = session.run("profile", [ncu, "--clock-control", "none", *counters, *kernels, sys.executable, *bench])
    session.note("profile", good, "see profile.log", started)


def tuned() -> list[dict[str, Any]]:
    """What the tuner has tried of our kernels on this machine: sizes, choices and milliseconds (median, 20 %, 80 %).

    The tests' sizes, which have one choice each, are left out.
    """
    from triton import knobs

    found = []
    for path in sorted(Path(knobs.cache.dir).rglob("*.autotune.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            trial = json.loads(path.read_text())
            if path.name.split(".")[0] in ("advance", "go_back") and len(trial["configs_timings"]) > 1:
                found.append({"kernel": path.name.split(".")[0], **trial})
    return found


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the steps, print the table; 0 if all that ran ended well."""
    parser = argparse.ArgumentParser(description="Tests, benchmark and an epoch of psMNIST on a GPU.")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this long")
    parser.add_argument("--output", type=Path, default=ROOT / "results/bench/gpu", help="folder for all that is found")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps to run")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < 1e6:
        parser.error(f"--minutes={options.minutes}: must be a number above 0")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"not installed for {sys.executable}: {', '.join(missing)}")
    import torch  # late: the line above is for those who lack it

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(f"torch {torch.__version__}, {gpu or 'NO GPU: torch sees none; a rehearsal on the CPU at tiny sizes'}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for leftover in options.output.glob("*.log"):
            leftover.unlink()  # logs are added to
    except OSError as error:
        parser.error(f"--output={options.output}: {error.strerror}")
    session = Session(options.output.resolve(), time.monotonic() + 60 * options.minutes, gpu)
    steps: dict[str, Callable[[Session], None]] = {
        "tests": tests, "bench": bench, "epoch": epoch, "bench_all": bench_all, "profile": profile
    }  # fmt: skip
    for name, step in steps.items():
        if name in options.only:
            if session.deadline - time.monotonic() < 20:
                session.note(name, False, "left out: no time left", time.monotonic())
            else:
                step(session)
    print(f"\n{'step':13} {'':7} {'s':>5}  result ({session.folder})")
    for row in session.results:
        print(f"{row['step']:13} {row['state']:7} {row['seconds']:5}  {row['result']}")
    if gpu:
        (session.folder / "tuned.json").write_text(json.dumps(tuned(), indent=1) + "\n")
    return int(any(row["state"] != "done" for row in session.results))
