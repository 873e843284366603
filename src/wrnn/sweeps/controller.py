"""The process that a sweep is started with: has the sweep folder to itself, says what is to do and how it ended."""

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import Timeout

from wrnn.errors import ConfigError, Interrupted, SweepIncomplete
from wrnn.files import folder_lock, read_json, write_json
from wrnn.runs import changed_code
from wrnn.sweeps.plan import FAILURES, OUTCOME, UNENDED, PlannedRun, estimate, in_use, status

SWEEP = "sweep.json"
STOP = ".stop"


@contextmanager
def in_charge(sweep_dir: Path, stops_runs: bool = True) -> Iterator[None]:
    """Hold a sweep folder; Ctrl-C and SIGTERM first let the runs that go on save and leave.

    Args:
        sweep_dir: made if there is none.
        stops_runs: False where the runs are in a queue of their own and outlive the controller.

    Raises: ConfigError where another sweep is in the folder.
    """
    try:
        lock = folder_lock(sweep_dir)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"hydra.sweep.dir={sweep_dir}: a sweep is running here ({_who(sweep_dir)}); wait, or name another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir={sweep_dir}: cannot be written to ({error.strerror})") from error
    (sweep_dir / STOP).unlink(missing_ok=True)
    write_json(sweep_dir / SWEEP, {"process": os.getpid(), "host": platform.node()})

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler)  # a second signal stops at once
        if stops_runs:
            _stop_runs(sweep_dir)
        queued = "" if stops_runs else "; what is queued stays so: scancel it first, or let it end"
        raise Interrupted(number, f"stopped by {signal.Signals(number).name}; the same command goes on{queued}")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        lock.release()


def _who(sweep_dir: Path) -> str:
    with suppress(ConfigError):
        owner = read_json(sweep_dir / SWEEP)
        if owner:
            return f"process {owner['process']} on {owner['host']}"
    return "its process is not known"


def controller_is_gone(sweep_dir: Path) -> bool:
    """Whether neither this process nor the one that started it is in charge of the sweep any more.

    One job at a time runs in the controller itself.
    """
    with suppress(ConfigError):
        return (read_json(sweep_dir / SWEEP) or {}).get("process") not in (os.getpid(), os.getppid())
    return False


def _stop_runs(sweep_dir: Path) -> None:
    """Have every run of this sweep on this machine save and leave, and wait for it; no new one starts meanwhile."""
    (sweep_dir / STOP).touch()
    asked = []
    for folder in (path.parent for path in sweep_dir.glob(f"*/{OUTCOME}")):
        found = _running_here(folder)
        if found and (in_use(folder) or found["supervisor"] == os.getpid() or _alive(found["supervisor"])):
            with suppress(ProcessLookupError):
                os.kill(found["process"], signal.SIGTERM)
            asked.append((folder, found["supervisor"]))
    for folder, supervisor in asked:
        while in_use(folder) or (_alive(supervisor) and _running_here(folder)):  # a worker has yet to write it down
            time.sleep(0.1)


def _running_here(folder: Path) -> dict[str, Any] | None:
    with suppress(ConfigError):
        found = read_json(folder / OUTCOME) or {}
        return found if found.get("outcome") == "running" and found.get("host") == platform.node() else None
    return None


def _alive(process: int) -> bool:
    """Whether another process is there; this one cannot write anything down while it waits."""
    return process != os.getpid() and Path(f"/proc/{process}").exists()


def announce(sweep_dir: Path, runs: Sequence[PlannedRun], retry: bool, at_once: int) -> list[PlannedRun]:
    """Say what the sweep holds, what is done and how long the rest may take; returns the runs that are to do."""
    found = [(run, status(run)) for run in runs]
    done = [(run, how) for run, how in found if how.state == "finished"]
    failed = [run for run, how in found if how.state in FAILURES]
    todo = [run for run, how in found if how.state in UNENDED or (retry and how.state in FAILURES)]
    also = f", {len(failed)} failed ({'to be retried' if retry else 'retry=true runs them again'})" if failed else ""
    time_left = f"; {estimate(todo, done, at_once)}" if todo else ""
    print(f"{sweep_dir}: {len(runs)} runs, {len(done)} done{also}, {len(todo)} to do{time_left}", flush=True)
    changed = [modules for run, _ in done if (modules := changed_code(run.folder))]
    if changed:
        names = ", ".join(sorted(set(chain.from_iterable(changed))))
        print(
            f"{len(changed)} of those done were made by other code ({names}) and stay as they are;"
            " to have them anew, delete their folders or give another hydra.sweep.dir",
            flush=True,
        )
    return todo


@contextmanager
def concluded(sweep_dir: Path, runs: Callable[[], Sequence[PlannedRun]]) -> Iterator[None]:
    """Whatever happens within, print how every run stands. Raises: SweepIncomplete unless all have finished."""
    try:
        yield
    except BaseException:
        _report(sweep_dir, runs())
        raise
    left = _report(sweep_dir, runs())
    if left:
        raise SweepIncomplete(f"{sweep_dir}: {left}; log.txt of each says more, {_what_goes_on(runs())}")


def _what_goes_on(runs: Sequence[PlannedRun]) -> str:
    states = {status(run).state for run in runs}
    if not states & set(FAILURES):
        return "the same command goes on"
    others = "the same command goes on with the others, and " if states & set(UNENDED) else ""
    return f"{others}with retry=true it runs the failed ones again"


def enter(ledger_dir: str | None, runs: Sequence[PlannedRun]) -> None:
    """Add the finished runs that the ledger lacks: a run may be killed between its end and its line there."""
    if ledger_dir is not None:
        from wrnn.paper import ledger  # late: every sweep passes this file

        ledger.append_missing(Path(ledger_dir), [run.folder for run in runs if status(run).state == "finished"])


def wait_for_requeued(runs: Sequence[PlannedRun], poll_seconds: float = 5.0) -> None:
    """Wait for runs that SLURM has queued again: submitit takes a job for done once its first start has returned."""
    while any(in_slurm(run.folder) for run in runs):
        time.sleep(poll_seconds)


def in_slurm(folder: Path) -> bool:
    """Whether SLURM has the run's job in its queue, waiting or at work."""
    record = read_json(folder / OUTCOME) or {}
    job = record.get("slurm_job")
    if job is None or record.get("outcome") not in UNENDED:
        return False
    found = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip())


def _report(sweep_dir: Path, runs: Sequence[PlannedRun]) -> str:
    """Print a line for each run that has not finished; returns how many of which kind there are."""
    found = [(run, status(run)) for run in runs]
    left = [(run, how) for run, how in found if how.state != "finished"]
    print(f"{sweep_dir}: {len(found) - len(left)} of {len(found)} runs finished", flush=True)
    for run, how in left:
        print(f"  {run.folder.name}: {how.state}{f': {how.reason}' if how.reason else ''}", flush=True)
    names = [how.state for _, how in left]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
