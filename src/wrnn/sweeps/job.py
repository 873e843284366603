"""One job of a sweep: start the run in a process of its own, wait, record how it ended, never raise for it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import wrnn
from wrnn.files import write_atomically
from wrnn.runs import CONFIG
from wrnn.sweeps import devices
from wrnn.sweeps.controller import STOP, controller_is_gone
from wrnn.sweeps.plan import (
    FAILURES,
    FOREIGN,
    LOG,
    PlannedRun,
    objective,
    plan,
    record,
    set_aside_damaged,
    status,
)

_SAY_EVERY = 30.0  # seconds
_ENDINGS = {0: "finished", 2: "bad config", 3: "diverged", 4: "out of memory", 130: "stopped", 143: "stopped"}


def job(cfg: DictConfig) -> float | None:
    """Run, or take up, or skip one run of a sweep; returns the metric to optimise, None where there is none.

    What goes wrong in the run is in its outcome.json; only what stops the sweep itself is raised.
    """
    hydra = HydraConfig.get()
    sweep_dir = Path(hydra.runtime.output_dir)
    run = plan(list(hydra.overrides.task), cfg, sweep_dir)
    if (sweep_dir / STOP).exists() or _is_left_behind(sweep_dir):
        return None
    for line in set_aside_damaged(run.folder):
        _say(line)
    found = status(run)
    if found.state == FOREIGN:
        _say(f"error: {found.reason}")
    elif run.config is None:
        record(run.folder, "bad config", reason=run.problem, exit_code=2, overrides=list(run.overrides))
        _say(f"{run.folder.name}: bad config: {run.problem}")
    elif found.state != "finished" and (found.state not in FAILURES or cfg.retry):
        _start_and_wait(run, cfg, sweep_dir, found.seconds)
    found = status(run)
    return objective(found.results, cfg.task.monitor.metric) if found.state == "finished" else None


def _is_local() -> bool:
    """Whether jobs run side by side on this machine with nobody else to tell them which GPU to take."""
    return "joblib" in HydraConfig.get().launcher._target_


def _is_left_behind(sweep_dir: Path) -> bool:
    """Whether this is a worker whose sweep was killed."""
    return _is_local() and controller_is_gone(sweep_dir)


def _start_and_wait(run: PlannedRun, cfg: DictConfig, sweep_dir: Path, seconds: float) -> None:
    overrides = HydraConfig.get().overrides.task
    with open_dict(cfg):
        cfg.paths.run_dir = str(run.folder)
        cfg.ckpt_path = "last"
        if not any(override.startswith("group=") for override in overrides):
            cfg.group = sweep_dir.name
    write_atomically(run.folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    gpus = devices.visible_gpus() if _is_local() and cfg.trainer.accelerator != "cpu" else []
    choose = [f"--gpus={','.join(gpus)}", f"--jobs-per-gpu={cfg.jobs_per_gpu}"] if gpus else []
    command = [sys.executable, "-m", "wrnn.sweeps.child", *choose, str(run.folder), *run.overrides]
    with (run.folder / LOG).open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=_environment(), start_new_session=True,  # Ctrl-C reaches the controller alone, which then asks nicely
        )  # fmt: skip
    facts = {"process": process.pid, "supervisor": os.getpid(), "overrides": list(run.overrides)}
    if "slurm" in HydraConfig.get().launcher._target_.lower():  # not where a sweep runs within a job of the user's own
        facts |= _slurm_job()
    record(run.folder, "running", seconds=seconds, **facts)
    _say(f"{run.folder.name}: started; {run.folder / LOG}")
    begun, oom_kills = time.monotonic(), _oom_kills()
    try:
        _wait(process, run.folder)
    except BaseException:  # the controller has stopped the run; or SLURM takes the machine away, which only we know
        if not (sweep_dir / STOP).exists():
            process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        seconds += time.monotonic() - begun
        outcome, reason = _ending(process.returncode, run.folder, _oom_kills() > oom_kills)
        if outcome == "killed" and _is_left_behind(sweep_dir):
            outcome = "stopped"  # whoever killed the controller has killed the run too
        record(run.folder, outcome, reason=reason, exit_code=process.returncode, seconds=round(seconds, 3), **facts)
        _say(f"{run.folder.name}: {outcome}{f': {reason}' if reason else ''}, {seconds:.0f} s")


def _wait(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for the process; say now and then what it said last."""
    if threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a worker; the controller sees to Ctrl-C
    said = ""
    while True:
        try:
            process.wait(timeout=_SAY_EVERY)
            return
        except subprocess.TimeoutExpired:
            line = _last_line(folder)
            if line != said:
                _say(f"{folder.name}: {line}")
            said = line


def _ending(code: int, folder: Path, out_of_memory: bool) -> tuple[str, str]:
    """Outcome and reason, from the exit code and the last line of the log."""
    if code < 0:
        name = signal.Signals(-code).name
        if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return "stopped", name  # before it had set itself up to save
        if code == -signal.SIGKILL and out_of_memory:
            return "out of memory", f"killed by the system, {name}"
        return "killed", name
    outcome = _ENDINGS.get(code, "crashed")
    return outcome, "" if code == 0 else _last_line(folder).removeprefix("error: ")


def _last_line(folder: Path) -> str:
    with (folder / LOG).open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _oom_kills() -> int:
    """How many processes this machine's kernel has killed for memory, memory limits of groups included."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0


def _environment() -> dict[str, str]:
    """The child finds this package installed or not, and keeps to the cores that SLURM gave."""
    source = str(Path(wrnn.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return {**({"OMP_NUM_THREADS": cores} if cores else {}), **os.environ, "PYTHONPATH": path}


def _slurm_job() -> dict[str, str]:
    """The name by which SLURM knows this job, if it does."""
    names = [os.environ.get(key) for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    job = f"{names[0]}_{names[1]}" if all(names) else os.environ.get("SLURM_JOB_ID")  # one run alone is no array
    return {"slurm_job": job} if job else {}


def _say(line: str) -> None:
    print(line, flush=True)
