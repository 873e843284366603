"""Runs from end to end: what they leave behind, what they refuse, how they end."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import wrnn
from conftest import CONF, ROOT, TINY_COPY, TINY_PSMNIST, Compose, needs_triton
from wrnn import cli, runs
from wrnn.errors import ConfigError, DivergedError
from wrnn.files import read_json, write_json
from wrnn.loggers import read_metrics
from wrnn.runs import ENVIRONMENT, RESULTS
from wrnn.training import evaluate, train


def command(*overrides: str, script: str = "train", cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command of a user, in a folder of his own."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"src/{script}.py"), *overrides],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the real command; tests read it and leave it alone."""
    folder = tmp_path_factory.mktemp("finished")
    done = command(*TINY_PSMNIST, "paths.run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder / "run"


def test_a_run_folder_is_whole(finished: Path) -> None:
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert left == {
        "config.yaml", "environment.json", "metrics.csv", "results.json", "learning_curve.png", "state_over_time.png",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", ".lock",
    }  # fmt: skip
    results, record = read_json(finished / RESULTS), read_json(finished / ENVIRONMENT)
    assert results is not None and record is not None
    for key in ("test/accuracy", "val/accuracy", "best_val/accuracy", "parameters_total", "parameters_weights"):
        assert key in results and key in (finished.parent / "stdout").read_text()
    assert results["parameters_total"] - results["parameters_weights"] == 5 + 1 + 10
    assert record["starts"][0]["seeds"] == {"seed": 0, "permutation_seed": 12008, "split_seed": 0, "order_seed": 0}
    steps, losses = read_metrics(finished / "metrics.csv")["train/loss"]
    assert steps == list(range(1, 19)) and all(loss > 0 for loss in losses)
    assert read_metrics(finished / "metrics.csv")["val/accuracy"][0] == [6, 12, 18]


def test_a_finished_run_can_be_tested_again_and_opened(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = read_json(finished / RESULTS)
    assert results is not None
    done = command(f"run={finished}", script="evaluate", cwd=finished.parent)
    assert done.returncode == 0 and "test/accuracy" in done.stdout, done.stderr
    run = wrnn.load_run(finished)
    batch = run.task.make_batch("test", 0, 0)
    with torch.no_grad():
        outputs, _ = run.core(batch.inputs, last_only=True)
        accuracy = float((run.readout(outputs).argmax(-1) == batch.targets).float().mean())
    assert accuracy == pytest.approx(results["test/accuracy"])
    assert evaluate(finished)["test/accuracy"] == pytest.approx(results["test/accuracy"])
    with pytest.raises(ConfigError, match="checkpoint=first: must be best or last"):
        wrnn.load_run(finished, checkpoint="first")


def test_code_that_is_not_what_it_was_is_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = shutil.copytree(finished, tmp_path / "older")
    evaluate(older)
    assert "not as it was" not in capsys.readouterr().out
    record = read_json(older / "environment.json")
    assert record is not None and {"wrnn.cores.wrnn", "wrnn.cores.base"} <= set(record["starts"][-1]["code"])
    record["starts"][-1]["code"]["wrnn.cores.wrnn"] = "0"
    write_json(older / "environment.json", record)
    evaluate(older)
    assert "not as it was: wrnn.cores.wrnn\n" in capsys.readouterr().out
    config = (older / "config.yaml").read_text()
    (older / "config.yaml").write_text(config.replace("ring_size: 5", "ring_size: 6"))
    with pytest.raises(ConfigError, match=r"its weights are not those of model=wrnn as it is now\. size mismatch for"):
        wrnn.load_run(older)


def test_a_file_that_git_does_not_know_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        me = ("-c", "user.name=me", "-c", "user.email=me@here")
        subprocess.run(["git", "-C", str(tmp_path), *me, *words], check=True, capture_output=True)

    (tmp_path / "src/wrnn").mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "src/wrnn/runs.py"))
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    (tmp_path / "notes.txt").touch()
    found = runs.git_state()
    assert found is not None and not found["changed"]
    (tmp_path / "src/mine.py").touch()
    found = runs.git_state()
    assert found is not None and found["changed"]


def test_one_seed_gives_one_result(compose_config: Compose, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path}/{name}"))
    assert (tmp_path / "a/metrics.csv").read_text() == (tmp_path / "b/metrics.csv").read_text()
    other = train(compose_config(*TINY_COPY, "seed=1", f"paths.run_dir={tmp_path}/c"))
    assert (tmp_path / "a/metrics.csv").read_text() != (tmp_path / "c/metrics.csv").read_text()
    assert other["run_name"] == "wrnn_copy_s1"


def test_validations_that_an_epoch_has_no_room_for(compose_config: Compose) -> None:
    with pytest.raises(ConfigError, match=r"val_check_interval. \(7\) must be .* of the training batches \(6\)"):
        train(compose_config(*TINY_COPY, "trainer.val_check_interval=7"))


def test_all_recurrences_train_alike(compose_config: Compose, tmp_path: Path) -> None:
    found = [
        train(compose_config(*TINY_COPY, f"recurrence={name}", f"paths.run_dir={tmp_path}/{name}"))[
            "test/cross_entropy"
        ]
        for name in ("reference", "torch", "cpp")
    ]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-4)  # float32 rounding over 15 steps of Adam


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they are interpreted; make gpu trains with them")
def test_the_kernels_of_a_gpu_train_alike(compose_config: Compose, tmp_path: Path) -> None:
    few = (*TINY_COPY, "trainer.max_steps=3", "task.datamodule.num_val=4", "task.datamodule.num_test=4")
    found = [
        train(compose_config(*few, f"recurrence={name}", f"paths.run_dir={tmp_path}/{name}"))["test/cross_entropy"]
        for name in ("torch", "triton")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_wave_learns_to_copy(compose_config: Compose) -> None:
    sizes = ("model.core.ring_size=24", "model.core.num_channels=6", "task.datamodule.delay=0")
    results = train(compose_config(*TINY_COPY, *sizes, "task.datamodule.batch_size=64", "trainer.max_steps=600",
                                   "optimizer.lr=3e-3", "task.datamodule.batches_per_epoch=300"))  # fmt: skip
    assert results["test/accuracy"] > 0.9  # chance is 1/8


def test_no_logger_is_needed(compose_config: Compose, tmp_path: Path) -> None:
    train(compose_config(*TINY_COPY, "logger=none", f"paths.run_dir={tmp_path}/run"))
    assert not (tmp_path / "run/metrics.csv").exists() and (tmp_path / "run/results.json").exists()


def test_every_limit_works(compose_config: Compose, tmp_path: Path) -> None:
    def steps(*limits: str) -> int:
        name = str(len(list(tmp_path.iterdir())))
        return int(train(compose_config(*TINY_COPY[:-1], *limits, f"paths.run_dir={tmp_path}/{name}"))["steps"])

    assert steps("trainer.max_steps=4") == 4
    assert steps("trainer.max_epochs=2") == 12
    assert steps("trainer.max_epochs=2", "trainer.limit_train_batches=0.5") == 6
    assert steps("trainer.max_epochs=2", "trainer.accumulate_grad_batches=4") == 4
    assert 0 < steps("trainer.max_time=00:00:00:01") < 60_000


def test_adding_says_when_it_was_solved(compose_config: Compose, tmp_path: Path) -> None:
    tiny = [choice.replace("copy", "adding").replace("delay", "sequence_length") for choice in TINY_COPY]
    solved = train(compose_config(*tiny, "task.monitor.solved_threshold=100", f"paths.run_dir={tmp_path}/a"))
    never = train(compose_config(*tiny, "task.monitor.solved_threshold=0", f"paths.run_dir={tmp_path}/b"))
    assert solved["solved_step"] == 6 and never["solved_step"] is None
    tiny += ["trainer.log_every_n_steps=4", "task.monitor.solved_threshold=100", "trainer.accumulate_grad_batches=2"]
    for metric in ("train/mse", "train/loss"):  # the second is there after every step
        run = f"paths.run_dir={tmp_path}/{metric[-4:]}"
        assert train(compose_config(*tiny, f"task.monitor.solved_metric={metric}", run))["solved_step"] == 4


def test_a_run_ends_where_it_is_solved_if_asked_to(compose_config: Compose, tmp_path: Path) -> None:
    solved = "callbacks.solved_step"
    stop = (*TINY_COPY, f"{solved}.metric=val/accuracy", f"{solved}.mode=max", f"{solved}.stop=true")
    whole = train(compose_config(*stop, f"{solved}.threshold=1.1", f"paths.run_dir={tmp_path}/whole"))
    early = train(compose_config(*stop, f"{solved}.threshold=0", f"paths.run_dir={tmp_path}/early"))
    assert (whole["steps"], whole["solved_step"]) == (15, None) and (early["steps"], early["solved_step"]) == (6, 6)
    assert early["identity"] == whole["identity"]
    bad_words = ("threshold=null", "threshold=0 metric=val/acuracy", "threshold=0 mode=up")
    for number, bad in enumerate(bad_words):
        words = [f"{solved}.{word}" for word in bad.split()]
        with pytest.raises(ConfigError, match=words[-1].split("=")[0] + "|needs"):
            train(compose_config(*stop, *words, f"paths.run_dir={tmp_path}/{number}"))


def test_a_loss_that_is_not_finite_stops_the_run(compose_config: Compose, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    choices = (
        *TINY_COPY,
        "trainer.max_steps=60",
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "model.core.nonlinearity=identity",
        "trainer.gradient_clip_val=null",
        f"paths.run_dir={folder}",
    )
    with pytest.raises(DivergedError, match=r"diverged at step \d+: loss \S+, gradient norm \S+, learning rate 1e\+30"):
        train(compose_config(*choices, "task.datamodule.batches_per_epoch=2"))
    kept = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in kept.values())
    assert not (folder / RESULTS).exists()


REFUSED = {
    "trainer.devices=2": r"trainer.devices=2: a run takes one device",
    "model=wrn": r"Could not find 'model/wrn'.*irnn lem .*wrnn",
    "task.datamodule.dellay=3": r"Key 'dellay' is not in struct; did you mean task\.datamodule\.delay$",
    "optimiser.lr=3": r"; did you mean optimizer\.lr$",
    "model.core.init.bias=zero": r"; it is read from init\.bias: set that$",
    "task.datamodule.delay=-1": r"task\.datamodule\.delay=-1: must be a whole number of at least 0",
    "model.core.num_channels=2.5": r"model\.core\.num_channels=2\.5: must be a whole number of at least 1",
    "model.core.kernel_size=9": r"model\.core\.kernel_size=9: must be odd and at most model\.core\.ring_size=7",
    "preset=best": "preset=best: must be one of corrected, paper_text, released_code",
    "seed=-1": r"seed=-1: must be a whole number in \[0, 2\^63\)",
    "lr=1e-3": r"Could not override 'lr'\. Key 'lr' not in 'RootConfig'; did you mean optimizer\.lr$",
    "+experiment=quickstart": "; write experiment=quickstart, without \\+$",
    "paths.runs_dir=~/x": "; a value with ~, =, spaces .* wants quotes within quotes",
    "optimizer.lr=-1": "optimizer.lr=-1: must be a number of at least 0",
    "logger=wandb logger.wandb.finish_timeout=-1": "finish_timeout=-1: must be a number of at least 0",
    "task.monitor.select=bset": "task.monitor.select='bset': must be one of best, last",
    "task.monitor.mode=max": "task.monitor.mode=max: must be min for val/cross_entropy",
    "scheduler=plateau scheduler.monitor=val/accuracy": "scheduler.scheduler.mode=min: must be max for val/accuracy",
    "ckpt_path=last": "ckpt_path=last: no run with these settings",
    "ckpt_path=nowhere.ckpt": r"ckpt_path=nowhere\.ckpt: no such file",
    "trainer.max_steps=many": "trainer",
    "trainer.max_steps=-1": "no budget: set max_epochs or max_steps in conf/task/copy.yaml",
    "init=shift init.weight.velocity=2": r"init\.weight\.velocity=2: must be a number in \[0, 1\]",
    "init=shift model.core.kernel_size=1": "init=shift: needs an odd kernel_size of at least 3",
}


def assert_one_line(done: subprocess.CompletedProcess[str], message: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and re.search(message, lines[0]), done.stderr


@pytest.mark.parametrize("choice", REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, choice: str) -> None:
    assert_one_line(command(*TINY_COPY, *choice.split(), cwd=tmp_path), REFUSED[choice])
    assert not list(tmp_path.iterdir()), "something was written"


def test_a_misspelled_key_in_a_file_is_one_line(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF / "task", conf / "task")
    copy = conf / "task/copy.yaml"
    copy.write_text(copy.read_text().replace("num_val:", "num_vall:"))
    search = f"hydra.searchpath=[file://{conf}]"
    # the project's own file comes first on the search path, so the misspelled one needs a name of its own
    copy.rename(conf / "task/mine.yaml")
    done = command(search, *TINY_COPY[2:], "model=wrnn", "task=mine", cwd=tmp_path)
    assert done.returncode == 2 and "num_val" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    (conf / "task/mine.yaml").write_text((CONF / "task/copy.yaml").read_text().replace("monitor:", "moniter:"))
    done = command(search, *TINY_COPY[2:], "model=wrnn", "task=mine", cwd=tmp_path)
    assert_one_line(done, "moniter")
    (conf / "task/mine.yaml").write_text("monitor: [1, 2]\n")
    done = command(search, *TINY_COPY[2:], "model=wrnn", "task=mine", cwd=tmp_path)
    assert_one_line(done, "a list where a mapping belongs: monitor")
    for content, said in (
        ("name: copy\nname: adding\n", "duplicate key name in .*mine.yaml.*line 2"),
        ("\xff", "utf-8"),
    ):
        (conf / "task/mine.yaml").write_text(content, encoding="latin-1")
        done = command(search, *TINY_COPY[2:], "model=wrnn", "task=mine", cwd=tmp_path)
        assert_one_line(done, f"a config file cannot be read: .*{said}")
    assert {path.name for path in tmp_path.iterdir()} == {"conf"}


def test_a_checkpoint_that_does_not_fit_is_one_line(finished: Path, tmp_path: Path) -> None:
    last = finished / "checkpoints/last.ckpt"
    done = command(*TINY_PSMNIST, "model=irnn", "~model.core.num_channels", f"ckpt_path={last}", cwd=tmp_path)
    assert done.returncode == 2
    tiny_irnn = [choice for choice in TINY_PSMNIST if not choice.startswith("model")]
    assert_one_line(
        command(*tiny_irnn, "model=irnn", f"ckpt_path={last}", cwd=tmp_path), "last.ckpt: is of another model"
    )
    for cut in (0, 100, last.stat().st_size // 2):
        (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:cut])
        assert_one_line(command(*TINY_PSMNIST, "ckpt_path=cut.ckpt", cwd=tmp_path), "cut.ckpt: not a whole checkpoint")
    assert {path.name for path in tmp_path.iterdir()} == {"cut.ckpt"}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("made",)


def test_what_is_in_a_checkpoint_is_not_run(finished: Path, tmp_path: Path) -> None:
    last = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    torch.save({**last, "loops": Malicious()}, tmp_path / "run/checkpoints/last.ckpt")
    said = r"last\.ckpt: holds more than numbers and text; nothing in it was run"
    words = (*TINY_PSMNIST, "ckpt_path=last", "paths.run_dir=run")
    assert_one_line(command(*words, cwd=tmp_path), said)
    assert_one_line(command("run=run", "checkpoint=last", script="evaluate", cwd=tmp_path), said)
    assert not (tmp_path / "made").exists()
    with pytest.MonkeyPatch.context() as patch:  # it would have been
        patch.chdir(tmp_path)
        torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)
    assert (tmp_path / "made").exists()


def test_data_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0" * 1000)
    choices = [choice for choice in TINY_PSMNIST if not choice.startswith("images")]
    done = command(*choices, cwd=tmp_path)
    assert_one_line(done, "train-images-idx3-ubyte")
    (tmp_path / "file").write_text("not a folder")
    assert_one_line(command(*choices, "paths.data_dir=file", cwd=tmp_path), "file")
    assert_one_line(command(*choices, "images=cifar10_folder", "task=nscifar10", cwd=tmp_path), "cifar10/train")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "file"}


def test_a_run_folder_that_cannot_be_written_is_one_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_line(command(*TINY_COPY, "paths.run_dir=file/run", cwd=tmp_path), "paths.run_dir=file/run: cannot be")
    assert_one_line(command(*TINY_COPY, f"paths.run_dir={finished}", cwd=tmp_path), "holds a run; use ckpt_path=last")


def test_a_disk_without_room_is_one_line_and_costs_nothing(tmp_path: Path) -> None:
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000)); sys.argv.pop(0);"
    code += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", code, str(ROOT / "src/train.py"), *TINY_COPY, "paths.run_dir=run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)  # no file may grow beyond 16 kB
    assert_one_line(done, r"run: cannot be written to \(File too large\); ckpt_path=last goes on")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run/.lock", "run/config.yaml", "run/environment.json", "run/metrics.csv"}  # no half checkpoint
    done = command(*TINY_COPY, "ckpt_path=last", "paths.run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


class Finalised:
    """Fails where nobody can catch it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_want_of_memory_is_one_line_wherever_it_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as left, cli.endings():
        Finalised(MemoryError())
        Finalised(KeyError("told"))
        assert "KeyError: 'told'" in (told := capsys.readouterr().err) and "MemoryError" not in told
        raise MemoryError
    assert left.value.code == 4 and capsys.readouterr().err == "error: out of memory\n"


def test_a_sweep_runs_every_job(tmp_path: Path) -> None:
    done = command("-m", *TINY_COPY, "trainer.max_steps=2", "seed=1,2", "paths.runs_dir=runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [json.loads(path.read_text())["run_name"] for path in sorted(tmp_path.glob(f"runs/*/*/{RESULTS}"))]
    assert names == ["wrnn_copy_s1", "wrnn_copy_s2"]
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "multirun.yaml"}


def test_help_is_short_and_does_not_load_torch(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import {}; sys.exit('{}' in sys.modules)"
    for module, unwanted in (("train", "torch"), ("wrnn.training", "wandb")):
        words = [sys.executable, "-c", code.format(module, unwanted), str(ROOT / "src")]
        assert subprocess.run(words, cwd=tmp_path).returncode == 0
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) < 40
    assert "model: antisymmetric, cornn, " in done.stdout and "ckpt_path=last" in done.stdout


def test_a_callback_can_be_switched_off(compose_config: Compose, tmp_path: Path) -> None:
    train(compose_config(*TINY_COPY, "callbacks.figures=null", f"paths.run_dir={tmp_path / 'run'}"))
    assert (tmp_path / "run/results.json").exists() and not list((tmp_path / "run").glob("*.png"))
