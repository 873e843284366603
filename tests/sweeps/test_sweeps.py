"""A sweep is killed, broken and started again, and ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY_COPY, Compose
from test_resume import assert_same_run
from wrnn.config import fingerprint
from wrnn.files import read_json
from wrnn.loggers import read_metrics
from wrnn.replay import replay
from wrnn.sweeps.controller import in_slurm
from wrnn.sweeps.job import _slurm_job
from wrnn.sweeps.plan import record

SWEEP = [*TINY_COPY, "callbacks.resume_point.every_minutes=0.002", "trainer.max_steps=60"]


def start(folder: Path, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), "-m", *overrides],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("runs/*/*/outcome.json"))


def outcomes(folder: Path) -> dict[str, str]:
    return {path.name: json.loads((path / "outcome.json").read_text())["outcome"] for path in run_folders(folder)}


def lost_steps(folder: Path) -> int:
    """Steps that stand in metrics.csv and not in the checkpoint: those will be done again."""
    lost = 0
    for run in run_folders(folder):
        if not (run / "results.json").exists() and (run / "metrics.csv").exists():
            steps = read_metrics(run / "metrics.csv").get("train/loss", ([0], []))[0]
            last = run / "checkpoints/last.ckpt"
            lost += steps[-1] - (torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)
    return lost


def kill_all(process: "subprocess.Popen[str]", folder: Path) -> None:
    """SIGKILL the controller with its workers, then every run that goes on: a machine that loses power, nearly."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for run in run_folders(folder):
        found = json.loads((run / "outcome.json").read_text())
        if found["outcome"] == "running":
            subprocess.run(["kill", "-9", str(found["process"])], check=False, capture_output=True)


def wait_for(*patterns: str, folder: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not all(list(folder.glob(pattern)) for pattern in patterns):
        assert time.monotonic() < deadline, patterns
        time.sleep(0.05)


def test_a_sweep_killed_twice_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = [*SWEEP, "seed=1,2,3"]
    finish(start(tmp_path / "whole", *axes), 0)
    folder = tmp_path / "killed"
    process = start(folder, *axes)
    wait_for("runs/multirun/*/checkpoints/last.ckpt", folder=folder)
    process.kill()  # the controller alone: the run goes on, and the next controller waits for it
    process.communicate()
    survivor = run_folders(folder)[0]
    process = start(folder, *axes)
    wait_for("runs/multirun/*s2*/config.yaml", folder=folder)
    time.sleep(random.uniform(0, 5))
    kill_all(process, folder)
    lost = lost_steps(folder)
    output = finish(start(folder, *axes), 0)
    assert re.search(r"3 runs, [12] done, [12] to do; about 0:0\d:\d\d left, 1 at a time, judging by [12] done", output)
    for run in run_folders(tmp_path / "whole"):
        assert_same_run(folder / run.relative_to(tmp_path / "whole"), run)
    starts = read_json(survivor / "environment.json")
    assert starts is not None and len(starts["starts"]) == 1 and lost < 12  # two epochs
    again = finish(start(folder, *axes), 0)
    assert "3 runs, 3 done, 0 to do" in again and "started" not in again
    monkeypatch.chdir(tmp_path)
    replay(survivor)  # raises if a run by itself is not the same


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_stopped_sweep_saves_its_runs_and_goes_on(tmp_path: Path, launcher: str) -> None:
    axes = [*SWEEP, "trainer.max_steps=3000", "seed=1,2,3", f"hydra/launcher={launcher}"]
    axes += ["callbacks.resume_point.every_minutes=10"]
    process = start(tmp_path / "sweep", *axes)
    wait_for(
        *(f"runs/*/*s{seed}*/metrics.csv" for seed in ([1, 2] if launcher == "local" else [1])),
        folder=tmp_path / "sweep",
    )
    process.send_signal(signal.SIGTERM)
    output = finish(process, 143)
    found = outcomes(tmp_path / "sweep")
    assert set(found.values()) == {"stopped"} and len(found) == (2 if launcher == "local" else 1), output
    assert "stopped by SIGTERM; the same command goes on" in output and "Traceback" not in output
    assert lost_steps(tmp_path / "sweep") <= len(found)  # a batch, where validation was next


GOOD = "optimizer: {{lr: {rate}}}\nmodel: {{core: {{ring_size: 7}}}}"
BAD = {
    "bad config": GOOD.format(rate=-1.0),
    "diverged": GOOD.format(rate=1e30).replace("7}", "7, nonlinearity: identity}"),
    "out of memory": "model: {core: {ring_size: 20000000}}",
}


@pytest.fixture
def memory_limit() -> Iterator[Path | None]:
    """A control group of 2 GB for a process to join; the kernel kills what goes beyond. None where none can be made."""
    group = next(
        base / "wrnn-test" for base in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if base.exists()
    )
    limit = "memory.limit_in_bytes" if group.parent.name == "memory" else "memory.max"
    try:
        group.mkdir(exist_ok=True)
        (group / limit).write_text(str(2 * 10**9))
    except OSError:
        yield None
        return
    yield group / "cgroup.procs"
    for process in (group / "cgroup.procs").read_text().split():  # joblib's helpers take a while to leave
        (group.parent / "cgroup.procs").write_text(process)
    group.rmdir()


@pytest.mark.parametrize("good", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_failures_are_recorded_with_their_reason_and_retried_when_asked(
    tmp_path: Path, memory_limit: Path | None, good: int
) -> None:
    failures = {name: text for name, text in BAD.items() if memory_limit or name != "out of memory"}
    settings = {f"good{number}": GOOD.format(rate=1e-3 * (number + 1)) for number in range(good)}
    settings |= {name.replace(" ", "_"): text for name, text in failures.items()}
    (tmp_path / "experiment").mkdir()
    for name, text in settings.items():
        (tmp_path / f"experiment/{name}.yaml").write_text(f"# @package _global_\nrun_name: {name}\n{text}\n")
    order = sorted(settings, key=lambda name: (name != "good0", name))
    axes = [f"hydra.searchpath=[file://{tmp_path}]", f"experiment={','.join(order)}", "hydra/launcher=local"]
    axes += [word for word in SWEEP if "ring_size" not in word]

    def sweep(*more: str) -> str:
        process = start(tmp_path / "sweep", *axes, *more)
        if memory_limit:
            memory_limit.write_text(str(process.pid))
        return finish(process, 5)

    output = sweep()
    found = outcomes(tmp_path / "sweep")
    assert {name.rpartition("-")[0]: outcome for name, outcome in found.items()} == {
        **{f"good{number}": "finished" for number in range(good)},
        **{name.replace(" ", "_"): name for name in failures},
    }
    said = output[output.index("runs finished") - 9 :]
    assert "optimizer.lr=-1.0: must be a number of at least 0" in said and "diverged at step" in said
    assert f"{good} of {good + len(failures)} runs finished" in said
    assert "killed by the system, SIGKILL" in said or not memory_limit
    assert said.rstrip().splitlines()[-1].startswith("error: ") and ", ".join(f"1 {name}" for name in failures) in said
    untouched = {run: (run / "outcome.json").stat().st_mtime_ns for run in run_folders(tmp_path / "sweep")}
    assert said.rstrip().endswith("with retry=true it runs the failed ones again")
    environment = next(tmp_path.glob("sweep/runs/*/good0-*/environment.json"))
    record = json.loads(environment.read_text())
    record["starts"][-1]["code"]["wrnn.cores.wrnn"] = "0"
    environment.write_text(json.dumps(record))
    output = sweep()
    assert "started" not in output and "1 of those done were made by other code (wrnn.cores.wrnn)" in output
    assert len(re.findall("started", sweep("retry=true"))) == len(failures)
    changed = {run.name for run, when in untouched.items() if (run / "outcome.json").stat().st_mtime_ns != when}
    assert {name.rpartition("-")[0] for name in changed} == {name.replace(" ", "_") for name in failures}
    if not memory_limit:
        pytest.skip("all but want of memory was tested: no limit can be set here")


def test_bad_input_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    axes = [*SWEEP, "trainer.max_steps=6"]
    for wrong, said in {
        "model.core.rings=1,2": r"error: .*model.core.rings.*",
        "seed=range(0,0)": r"error: seed=range\(0,0\): an axis without values",
        "seed=choice()": r"error: .*choice\(\).*",
        "ckpt_path=/nowhere.ckpt": r"error: ckpt_path=/nowhere.ckpt: a sweep's runs start anew, .*",
    }.items():
        output = finish(start(folder, *axes, wrong), 2)
        assert re.fullmatch(said, output.strip()), output
    finish(start(folder, *axes, "seed=1,2"), 0)
    first, second = run_folders(folder)
    (first / "results.json").write_text('{"run_name": "half')
    foreign = (second / "config.yaml").read_text().replace("lr: 0.001", "lr: 0.5")
    (second / "config.yaml").write_text(foreign)
    (folder / "runs/multirun/notes.txt").write_text("mine")
    process = start(folder, *axes, "seed=1,2,3", "trainer.max_steps=6")
    wait_for("runs/multirun/*s3*/config.yaml", folder=folder)
    refused = finish(start(folder, *axes, "seed=1"), 2)
    assert re.fullmatch(
        r"error: hydra.sweep.dir=.*: a sweep is running here \(process \d+ on .*\); wait, or .*", refused.strip()
    )
    output = finish(process, 5)
    assert len(re.findall("results.json: cannot be read .*; kept as results.json.damaged", output)) == 1
    assert "1 foreign" in output and "holds another run than its name says; move it away" in output
    assert read_json(first / "results.json") and (first / "results.json.damaged").exists()
    assert (second / "config.yaml").read_text() == foreign and read_json(second / "results.json")


def test_the_name_of_a_run_changes_with_its_result_and_with_nothing_else(compose_config: Compose) -> None:
    base = fingerprint(compose_config())
    same = ["logger=none", "hydra/launcher=local", "retry=true", "group=x", "trainer=cpu", "cuda_graphs=true"]
    other = ["seed=1", "trainer.max_steps=7", "trainer.limit_val_batches=2", "callbacks=give_up"]
    other += ["callbacks.solved_step.stop=true"]
    assert all(fingerprint(compose_config(change)) == base for change in same)
    other += ["+trainer.detect_anomaly=true", "callbacks.best.monitor=val/loss", "callbacks.best.mode=min"]
    other += ["callbacks.best=null", "callbacks.validate_at_end=null", "callbacks.solved_step.threshold=0.5"]
    assert len({fingerprint(compose_config(change)) for change in other} | {base}) == 12
    clips = [fingerprint(compose_config(f"trainer.gradient_clip_val={clip}")) for clip in ("1", "1.0", "0", "null")]
    assert clips[0] == clips[1] != clips[2] == clips[3]
    rule = compose_config("+callbacks.mine={_target_: lightning.Callback, at: '${paths.run_dir}/more'}")
    planned = fingerprint(rule)
    rule.paths.run_dir = "/somewhere/run"
    assert fingerprint(rule) == planned


def test_a_killed_search_goes_on_and_hopeless_runs_give_up(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra optuna")
    choices = [word for word in SWEEP if "max_steps" not in word] + ["sweep=optuna_copy", "hydra.sweeper.n_trials=3"]
    choices += ["trainer.max_steps=600", "callbacks.give_up.deadlines=[[12,0.001]]", "hydra.sweeper.params={}"]
    choices += ["optimizer.lr=choice(1e-3,2e-3,3e-3)"]
    folder = tmp_path / "search"
    process = start(folder, *choices)
    wait_for("runs/optuna_copy/*/outcome.json", folder=folder)
    first = run_folders(folder)[0]
    kill_all(process, folder)
    output = finish(start(folder, *choices), 0)
    assert "3 trials, 0 done, 1 lost and asked for again" in output and "runs finished" in output
    results = read_json(first / "results.json")
    assert results is not None and results["steps"] == 12
    assert re.fullmatch(r"val/cross_entropy \S+ at step 12, 0.001 was wanted by 12", results["gave_up"])
    study = optuna.load_study(study_name="copy", storage=f"sqlite:///{folder}/runs/optuna_copy/study.db")
    told = [trial.value for trial in study.trials if trial.state.name == "COMPLETE"]
    found = [read_json(run / "results.json") or {} for run in run_folders(folder)]
    assert len(told) == 3 and set(told) == {one["best_val/cross_entropy"] for one in found}
    assert study.trials[1].params == study.trials[0].params
    assert "3 trials, 3 done" in finish(start(folder, *choices), 0)
    more = [*choices, "hydra.sweeper.n_trials=4"]
    misspelled = finish(start(folder, *more, "optimizer.rate=choice(1,2)"), 2)
    assert re.search(r"\nerror: .*optimizer.rate", misspelled) and "Traceback" not in misspelled
    other = finish(start(folder, *more, "optimizer.lr=interval(1e-3,1e-2)"), 2)
    assert re.search(r"\nerror: hydra.sweeper.params: .* needs another hydra.sweep.dir", other)
    other = finish(start(folder, *more, "task.datamodule.batch_size=4"), 2)
    assert re.search(r"\nerror: hydra.sweep.dir=.*: holds another search; name another", other)
    wrong = finish(start(folder, *more, "hydra.sweeper.direction=maximize"), 2)
    assert re.search(r"error: hydra.sweeper.direction=maximize: must be minimize, as task.monitor.mode=min", wrong)


def test_what_slurm_has_is_known_by_the_number_of_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text('#!/bin/sh\n[ "$3" != 7_1 ] || echo RUNNING\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for number, outcome, there in (("7_1", "running", True), ("8", "running", False), ("7_1", "finished", False)):
        record(tmp_path, outcome, slurm_job=number)
        assert in_slurm(tmp_path) is there
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert _slurm_job() == {"slurm_job": "8"}  # a job by itself is no array
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert _slurm_job() == {"slurm_job": "7_1"}


@pytest.mark.slow
def test_the_ablation_of_table_4_killed_twice_at_random(tmp_path: Path) -> None:
    """Twelve runs of the real size, two at a time; whoever is at work is killed with SIGKILL, workers included."""
    axes = ["sweep=ablation_copy", "task.datamodule.delay=30", "trainer=cpu", "trainer.max_steps=400"]
    axes += ["trainer.log_every_n_steps=1", "task.datamodule.num_val=200", "task.datamodule.num_test=200"]
    axes += ["callbacks.resume_point.every_minutes=0.05", "hydra/launcher=local"]
    finish(start(tmp_path / "whole", *axes), 0)
    folder, draw, lost = tmp_path / "killed", random.Random(), 0
    for _ in range(2):
        process = start(folder, *axes)
        wait_for("runs/ablation_copy/*/config.yaml", folder=folder)
        time.sleep(draw.uniform(10, 30))
        kill_all(process, folder)
        assert len(list(folder.glob("runs/*/*/results.json"))) < 12
        lost += lost_steps(folder)
    output = finish(start(folder, *axes), 0)
    for run in run_folders(tmp_path / "whole"):
        assert_same_run(folder / run.relative_to(tmp_path / "whole"), run)
    print(output.splitlines()[0], f"; {lost} steps of {12 * 400} done again")
    assert lost < 400 and len(run_folders(folder)) == 12
