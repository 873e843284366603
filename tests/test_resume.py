"""A run that is stopped or killed at any moment ends as an uninterrupted one: weights bit for bit, each step once."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY_COPY, TINY_PSMNIST, Compose
from wrnn.callbacks.stopping import GiveUp
from wrnn.errors import ConfigError, Interrupted
from wrnn.loggers import MetricsCSV
from wrnn.module import SequenceModule
from wrnn.replay import differences
from wrnn.tasks.base import SequenceBatch
from wrnn.tasks.copy import Copy
from wrnn.training import evaluate, train

LONGER = {"copy": ("trainer.max_steps=200",), "psmnist": ("trainer.max_epochs=5", "trainer.limit_val_batches=1")}
TINY = {"copy": TINY_COPY, "psmnist": (*TINY_PSMNIST, "scheduler.drop_epochs=[1,2]")}
PLATEAU = ("scheduler=plateau", "scheduler.scheduler.patience=0")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(folder: Path, whole: Path) -> None:
    assert differences(folder, whole) == []


@pytest.mark.parametrize(
    ("task", "extra", "shorter"),
    [
        ("copy", (), "trainer.max_steps=12"),
        ("psmnist", (), "trainer.max_epochs=1"),
        ("psmnist", PLATEAU, "trainer.max_epochs=2"),
    ],
)
def test_a_longer_budget_takes_up_a_finished_run(
    compose_config: Compose, tmp_path: Path, task: str, extra: tuple[str, ...], shorter: str
) -> None:
    choices = (*TINY[task], *extra)
    train(compose_config(*choices, f"paths.run_dir={tmp_path}/whole"))
    train(compose_config(*choices, shorter, f"paths.run_dir={tmp_path}/parts"))
    train(compose_config(*choices, "ckpt_path=last", f"paths.run_dir={tmp_path}/parts"))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_budget_that_ends_in_mid_epoch_is_taken_up(compose_config: Compose, tmp_path: Path) -> None:
    choices = (*TINY["psmnist"], *PLATEAU)
    train(compose_config(*choices, f"paths.run_dir={tmp_path}/whole"))
    train(compose_config(*choices, "trainer.max_steps=8", f"paths.run_dir={tmp_path}/parts"))
    train(compose_config(*choices, "ckpt_path=last", f"paths.run_dir={tmp_path}/parts"))
    assert all(torch.equal(a, b) for a, b in zip(
        weights(tmp_path / "whole").values(), weights(tmp_path / "parts").values(), strict=True))  # fmt: skip


@pytest.mark.parametrize("at", [2, 5, 6])  # of 6 in an epoch: in the middle, before and after what validation follows
def test_a_signal_between_two_batches_costs_none(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder, log = tmp_path / "stopped", MetricsCSV.log_metrics

    def stop(self: MetricsCSV, metrics: dict[str, float], step: int) -> None:
        log(self, metrics, step)
        if "train/loss" in metrics and step + 1 == at:
            signal.raise_signal(signal.SIGTERM)

    train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/whole"))
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="ckpt_path=last goes on"):
        patched.setattr(MetricsCSV, "log_metrics", stop)
        train(compose_config(*TINY_COPY, f"paths.run_dir={folder}"))
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved == {2: 3, 5: 5, 6: 5}[at]  # in validation: the batch before the one that it follows
    train(compose_config(*TINY_COPY, "ckpt_path=last", f"paths.run_dir={folder}"))
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("signalled", [False, True])
def test_the_validation_that_closes_a_run_is_not_lost(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool
) -> None:
    words = (*TINY_COPY, "trainer.log_every_n_steps=10")
    train(compose_config(*words, f"paths.run_dir={tmp_path}/whole"))
    validate = SequenceModule.validation_step

    def stop(self: SequenceModule, batch: SequenceBatch, batch_idx: int) -> None:
        if self.global_step == 15:  # the budget, in mid-epoch
            if not signalled:
                raise RuntimeError("killed")
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # a second one, of another kind: at once
        validate(self, batch, batch_idx)

    with monkeypatch.context() as patched, pytest.raises((RuntimeError, Interrupted)):
        patched.setattr(SequenceModule, "validation_step", stop)
        train(compose_config(*words, f"paths.run_dir={tmp_path}/stopped"))
    train(compose_config(*words, "ckpt_path=last", f"paths.run_dir={tmp_path}/stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert not (tmp_path / "stopped/checkpoints/closing.ckpt").exists()


@pytest.mark.parametrize("together", [3, 6])
@pytest.mark.parametrize("at", [4, 5, 8])  # of batches summed by threes, six in an epoch: in and between the groups
def test_a_signal_within_a_sum_of_gradients_loses_none(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, together: int
) -> None:
    words = (*TINY_COPY, f"trainer.accumulate_grad_batches={together}", "trainer.max_steps=5")
    whole = train(compose_config(*words, f"paths.run_dir={tmp_path}/whole"))
    assert (whole["steps"], whole["epochs"]) == (5, 5 * together / 6)
    step, seen = SequenceModule.training_step, []

    def stop(self: SequenceModule, batch: SequenceBatch, batch_idx: int) -> torch.Tensor:
        seen.append(batch_idx)
        if len(seen) == at:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(SequenceModule, "training_step", stop)
        train(compose_config(*words, f"paths.run_dir={tmp_path}/stopped"))
    saved = torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved in (max(1, at // together - 1), max(1, at // together), at // together + 1)
    train(compose_config(*words, "ckpt_path=last", f"paths.run_dir={tmp_path}/stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_another_run_s_checkpoint_does_not_bring_its_rate(compose_config: Compose, tmp_path: Path) -> None:
    train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/run"))
    words = (*TINY_COPY, f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt", "trainer.max_steps=20")
    with pytest.raises(ConfigError, match="is of another optimizer: optimizer.lr: 0.001, now 1e-05"):
        train(compose_config(*words, "optimizer.lr=1e-5", f"paths.run_dir={tmp_path}/other"))
    assert train(compose_config(*words, f"paths.run_dir={tmp_path}/same"))["steps"] == 20


def start(folder: Path, task: str, *extra: str) -> subprocess.Popen[str]:
    choices = (*TINY[task], *LONGER[task], "callbacks.resume_point.every_minutes=0.002", *extra)
    command = [sys.executable, str(ROOT / "src/train.py"), *choices, f"paths.run_dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder.parent
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def kill_when(process: subprocess.Popen[str], number: int, when: Path, seconds: float) -> int:
    """Send a signal some time after the process has written a file; returns the exit code."""
    begun = time.time()
    while process.poll() is None and not (when.exists() and when.stat().st_mtime >= begun):
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(number)
    process.communicate(timeout=300)
    return process.returncode


def kill_and_compare(tmp_path: Path, task: str, kills: list[tuple[int, str, float]], *extra: str) -> int:
    """Kill a run again and again, let it end, compare; returns how many signals came before it was done."""
    finish(start(tmp_path / "whole", task, *extra))
    folder, hits = tmp_path / "killed", 0
    for number, when, seconds in kills:
        code = kill_when(start(folder, task, "ckpt_path=last", *extra), number, folder / when, seconds)
        if code:
            assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(number)]
            hits += 1
    finish(start(folder, task, "ckpt_path=last", *extra))
    assert_same_run(folder, tmp_path / "whole")
    return hits


def test_killed_and_stopped_runs_end_as_the_uninterrupted_one(tmp_path: Path) -> None:
    kills = [
        (signal.SIGKILL, "config.yaml", 0.0),
        (signal.SIGTERM, "metrics.csv", 0.3),
        (signal.SIGINT, "config.yaml", 0.6),
    ]
    assert kill_and_compare(tmp_path, "copy", kills) > 0


@pytest.mark.parametrize(("minutes", "saved"), [("1e-9", 20), ("60", None)])
def test_in_an_epoch_that_lasts_the_clock_decides_what_a_crash_costs(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: str, saved: int | None
) -> None:
    make = Copy.make_batch

    def make_batch(task: Copy, split: str, epoch: int, index: int) -> SequenceBatch:
        if index == 20:
            raise RuntimeError("the lights go out")
        return make(task, split, epoch, index)

    monkeypatch.setattr(Copy, "make_batch", make_batch)
    clock = f"callbacks.resume_point.every_minutes={minutes}"
    with pytest.raises(RuntimeError, match="the lights go out"):
        train(compose_config(*TINY_COPY, "task.datamodule.batches_per_epoch=1000", "trainer.max_steps=1000", clock,
                             f"paths.run_dir={tmp_path}/run"))  # fmt: skip
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert (torch.load(last, weights_only=True)["global_step"] if last.exists() else None) == saved


def test_a_core_that_drops_units_at_random_drops_the_same_ones_again(compose_config: Compose, tmp_path: Path) -> None:
    choices = [word for word in TINY_COPY if not word.startswith("model")]
    choices += ["model=indrnn", "model.core.hidden_size=8", "model.core.num_layers=2", "model.core.dropout=0.5"]
    train(compose_config(*choices, f"paths.run_dir={tmp_path}/whole"))
    train(compose_config(*choices, "trainer.max_steps=12", f"paths.run_dir={tmp_path}/parts"))
    train(compose_config(*choices, "ckpt_path=last", f"paths.run_dir={tmp_path}/parts"))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_that_was_stopped_after_training_is_tested_when_it_is_resumed(
    compose_config: Compose, tmp_path: Path
) -> None:
    for name in ("whole", "stopped"):
        train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/{name}"))
    (tmp_path / "stopped/results.json").unlink()
    train(compose_config(*TINY_COPY, "ckpt_path=last", f"paths.run_dir={tmp_path}/stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    "rule",
    [
        ("callbacks=give_up", "callbacks.give_up.deadlines=[[5,1e-9]]"),
        ("callbacks.solved_step.metric=val/cross_entropy", "callbacks.solved_step.threshold=99",
         "callbacks.solved_step.stop=true"),
    ],
)  # fmt: skip
def test_a_run_that_ended_itself_and_was_stopped_before_its_test_makes_no_more_steps(
    compose_config: Compose, tmp_path: Path, rule: tuple[str, ...]
) -> None:
    words = (*TINY_COPY, *rule)
    for name in ("whole", "stopped"):
        assert train(compose_config(*words, f"paths.run_dir={tmp_path}/{name}"))["steps"] == 6
    (tmp_path / "stopped/results.json").unlink()
    train(compose_config(*words, "ckpt_path=last", f"paths.run_dir={tmp_path}/stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(("mode", "any_value", "wanted", "worse"), [("min", 9, 0.5, 0.6), ("max", 0, 0.5, 0.4)])
def test_of_several_deadlines_the_latest_that_has_passed_counts(
    mode: str, any_value: float, wanted: float, worse: float
) -> None:
    rule = GiveUp("val/some", mode, [(20, wanted), (10, any_value)])
    assert [rule._judge(step, worse) is None for step in (5, 10, 19, 20, 99)] == [True, True, True, False, False]
    assert rule._judge(99, wanted) is None


def test_a_run_that_gave_up_goes_on_under_other_deadlines(compose_config: Compose, tmp_path: Path) -> None:
    words = (*TINY_COPY, "callbacks=give_up", f"paths.run_dir={tmp_path}/run")
    assert train(compose_config(*words, "callbacks.give_up.deadlines=[[6,0.0]]"))["steps"] == 6
    assert train(compose_config(*words, "callbacks.give_up.deadlines=[[6,0.1]]", "ckpt_path=last"))["steps"] == 6
    done = train(compose_config(*words, "callbacks.give_up.deadlines=[[6,9.0]]", "ckpt_path=last"))
    assert done["steps"] == 15 and "gave_up" not in done


def test_a_run_folder_that_was_moved_knows_its_best(compose_config: Compose, tmp_path: Path) -> None:
    whole = train(compose_config(*TINY_COPY, "optimizer.lr=10", f"paths.run_dir={tmp_path}/whole"))
    train(compose_config(*TINY_COPY, "optimizer.lr=10", "trainer.max_steps=12", f"paths.run_dir={tmp_path}/before"))
    (tmp_path / "before").rename(tmp_path / "moved")
    moved = train(compose_config(*TINY_COPY, "optimizer.lr=10", "ckpt_path=last", f"paths.run_dir={tmp_path}/moved"))
    assert (
        whole["best_val/cross_entropy"] < whole["val/cross_entropy"]
    )  # the rate is too large: the best is an early one
    assert moved["best_val/cross_entropy"] == whole["best_val/cross_entropy"]
    assert moved["test/cross_entropy"] == whole["test/cross_entropy"]
    best, last = (evaluate(tmp_path / "whole", which)["test/cross_entropy"] for which in ("best", "last"))
    assert whole["test/cross_entropy"] == pytest.approx(best, rel=1e-6) != pytest.approx(last, rel=1e-2)


def test_results_of_a_shorter_budget_do_not_stand_for_the_longer_one(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"paths.run_dir={tmp_path}/run"
    train(compose_config(*TINY_COPY, "trainer.max_steps=6", run))
    monkeypatch.setattr("wrnn.training._run", lambda *_: (_ for _ in ()).throw(Interrupted(15, "stopped")))
    with pytest.raises(Interrupted):
        train(compose_config(*TINY_COPY, "ckpt_path=last", run))
    assert not (tmp_path / "run/results.json").exists() and (tmp_path / "run/results.previous.json").exists()


def test_a_checkpoint_with_one_wrong_bit_is_refused(compose_config: Compose, tmp_path: Path) -> None:
    train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/run"))
    path = tmp_path / "run/checkpoints/last.ckpt"
    content = bytearray(path.read_bytes())
    values = next(iter(weights(tmp_path / "run").values())).numpy().tobytes()
    content[content.index(values) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="last.ckpt: not a whole checkpoint .* checksum"):
        train(compose_config(*TINY_COPY, "ckpt_path=last", f"paths.run_dir={tmp_path}/run"))


def test_what_a_killed_process_left_half_written_is_swept_up(compose_config: Compose, tmp_path: Path) -> None:
    half = tmp_path / "run/checkpoints/.last.ckpt.4711.tmp"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/run"))
    assert not half.exists() and (tmp_path / "run/results.json").exists()


def test_a_signal_during_the_first_batch_stops_at_once(
    compose_config: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def signalled(*args: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr("wrnn.cores.wrnn.TravelingWaveRNN.read_every_step", signalled)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/run"))
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "longer"), [("copy", "trainer.max_steps=1500"), ("psmnist", "trainer.max_epochs=60")])
def test_ten_random_kills(tmp_path: Path, task: str, longer: str) -> None:
    draw = random.Random(0)
    kills: list[tuple[int, str, float]] = [
        (draw.choice([signal.SIGKILL, signal.SIGTERM]), draw.choice(["config.yaml", "metrics.csv"]), draw.uniform(0, 3))
        for _ in range(10)
    ]
    kills[:2] = [(signal.SIGKILL, "config.yaml", 0.0), (signal.SIGTERM, "config.yaml", 0.0)]  # before any checkpoint
    assert kill_and_compare(tmp_path, task, kills, longer) >= 8
