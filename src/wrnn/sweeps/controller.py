"""The process that a sweep is started with: has the sweep folder to itself, says what is to do and how it ended."""

import os
import platform
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from filelock import Timeout
from rich.console import Console
from rich.table import Table

from wrnn.errors import ConfigError, Interrupted, SweepIncomplete
from wrnn.files import folder_lock, read_json, write_json
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
        raise Interrupted(number, f"stopped by {signal.Signals(number).name}; the same command goes on")

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
    """Whether the process that started this one is not the one in charge of the sweep any more."""
    with suppress(ConfigError):
        return (read_json(sweep_dir / SWEEP) or {}).get("process") != os.getppid()
    return False


def _stop_runs(sweep_dir: Path) -> None:
    """Have every run of this sweep on this machine save and leave, and wait for it; no new one starts meanwhile."""
    (sweep_dir / STOP).touch()
    asked = []
    for path in sweep_dir.glob(f"*/{OUTCOME}"):
        with suppress(ConfigError, ProcessLookupError):
            found = read_json(path) or {}
            if found.get("outcome") == "running" and found.get("host") == platform.node() and in_use(path.parent):
                os.kill(int(found["process"]), signal.SIGTERM)
                asked.append(path.parent)
    while any(in_use(folder) for folder in asked):
        time.sleep(0.1)


def announce(sweep_dir: Path, runs: Sequence[PlannedRun], retry: bool, at_once: int) -> list[PlannedRun]:
    """Say what the sweep holds, what is done and how long the rest may take; returns the runs that are to do."""
    found = [(run, status(run)) for run in runs]
    done = [(run, how) for run, how in found if how.state == "finished"]
    failed = [run for run, how in found if how.state in FAILURES]
    todo = [run for run, how in found if how.state in UNENDED or (retry and how.state in FAILURES)]
    also = f", {len(failed)} failed ({'to be retried' if retry else 'retry=true runs them again'})" if failed else ""
    time_left = f"; {estimate(todo, done, at_once)}" if todo else ""
    print(f"{sweep_dir}: {len(runs)} runs, {len(done)} done{also}, {len(todo)} to do{time_left}", flush=True)
    return todo


@contextmanager
def concluded(sweep_dir: Path, runs: Sequence[PlannedRun]) -> Iterator[None]:
    """Whatever happens within, print how every run stands. Raises: SweepIncomplete unless all have finished.

    Where a launcher gives up, for it has lost a process, its traceback is shown first.
    """
    try:
        yield
    except Exception:
        traceback.print_exc()
    except BaseException:
        _report(sweep_dir, runs)
        raise
    left = _report(sweep_dir, runs)
    if left:
        raise SweepIncomplete(f"{sweep_dir}: {left}; log.txt of each says more, the same command goes on")


def _report(sweep_dir: Path, runs: Sequence[PlannedRun]) -> str:
    """Print a line for each run that has not finished; returns how many of which kind there are."""
    found = [(run, status(run)) for run in runs]
    left = [(run, how) for run, how in found if how.state != "finished"]
    if left:
        table = Table(title=f"{sweep_dir}: not finished", title_justify="left")
        for heading in ("run", "outcome", "reason"):
            table.add_column(heading, overflow="fold")
        for run, how in left:
            table.add_row(run.folder.name, how.state, how.reason)
        Console(width=None if Console().is_terminal else 160).print(table)
    print(f"{sweep_dir}: {len(found) - len(left)} of {len(found)} runs finished", flush=True)
    names = [how.state for _, how in left]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
