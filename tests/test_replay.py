"""A run folder is enough to make the run again, to the last bit, and what is not the same is told."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import TINY_COPY, TINY_PSMNIST, Compose
from wrnn.errors import ConfigError, ReplayDiffers
from wrnn.files import read_json, write_json
from wrnn.replay import differences, replay
from wrnn.runs import environment
from wrnn.training import train


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [(*TINY_COPY, "callbacks=record_states"), TINY_PSMNIST], ids=["copy", "psmnist"])
def test_a_folder_makes_its_run_again(
    compose_config: Compose, elsewhere: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    into = ("paths.run_dir=run", "paths.ledger_dir=ledger")
    train(compose_config(*words, *into, "trainer.max_steps=12"))
    train(compose_config(*words, *into, "ckpt_path=last"))  # the second part of it
    before = contents(elsewhere)
    again = replay(Path("run"))
    assert "the same as run, bit for bit" in capsys.readouterr().out
    after = contents(elsewhere)
    assert [path for path in before if after.get(path) != before[path]] == [], "the replay wrote where the run had"
    assert again.parent.parent == elsewhere / "runs" and differences(Path("run"), again) == []


def test_a_run_that_time_ended_is_made_again_by_its_steps(compose_config: Compose, elsewhere: Path) -> None:
    results = train(
        compose_config(*TINY_COPY, "paths.run_dir=run", "trainer.max_time=00:00:00:02", "trainer.max_steps=-1")
    )
    again = read_json(replay(Path("run")) / "results.json")
    assert again is not None and again["steps"] == results["steps"]


def test_what_is_not_the_same_is_named(compose_config: Compose, elsewhere: Path) -> None:
    train(compose_config(*TINY_COPY, "paths.run_dir=run"))
    results = read_json(elsewhere / "run/results.json")
    record = read_json(elsewhere / "run/environment.json")
    assert results is not None and record is not None
    write_json(elsewhere / "run/results.json", {**results, "test/accuracy": 0.75})
    rows = (elsewhere / "run/metrics.csv").read_text().splitlines(keepends=True)
    (elsewhere / "run/metrics.csv").write_text("".join([*rows[:3], rows[3].replace("4", "5"), *rows[4:]]))
    last = elsewhere / "run/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["core.kernel"][0, 0, 0] += 0.5
    torch.save(checkpoint, last)
    said = r"test/accuracy 0\.75 and 0\.\d+; metrics\.csv from line 4 on; checkpoints/last\.ckpt by up to 5\.0e-01 in "
    with pytest.raises(ReplayDiffers, match=said):
        replay(Path("run"))


def test_what_was_different_then_is_told(
    compose_config: Compose, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose_config(*TINY_COPY, "paths.run_dir=run"))
    record = read_json(elsewhere / "run/environment.json")
    assert record is not None
    record["starts"][-1]["versions"]["torch"] = "1.0"
    record["starts"][-1]["git"] = {"commit": "abc", "changed": False}
    record["starts"][-1]["hardware"]["threads"] = 1
    record["starts"][-1]["code"]["wrnn.cores.wrnn"] = "def"
    write_json(elsewhere / "run/environment.json", record)
    replay(Path("run"))
    out = capsys.readouterr().out
    assert f"torch was 1.0, is {version('torch')}" in out and re.search("commit was abc, is ", out)
    assert "not as it was: wrnn.cores.wrnn was def, is " in out


def test_a_gpu_beside_a_run_on_the_cpu_is_not_its_hardware(
    compose_config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    for accelerator, gpu in (("cpu", None), ("auto", "a GPU")):
        cfg = compose_config(*TINY_COPY, f"trainer.accelerator={accelerator}")
        assert environment(cfg)["hardware"]["gpu"] == gpu


def test_a_damaged_folder_is_told_before_anything_is_trained(
    compose_config: Compose, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(compose_config(*TINY_COPY, "paths.run_dir=run"))
    monkeypatch.setattr("wrnn.replay.train", lambda cfg: pytest.fail("it trained"))
    for name, said in (
        ("results.json", "results.json: cannot be read"),
        ("environment.json", "environment.json: cannot be read"),
        ("config.yaml", r"cut: config.yaml is cut off, .*paths\.\w+ is missing|config.yaml is missing or unreadable"),
        ("checkpoints/best.ckpt", "best.ckpt: not a whole checkpoint"),
    ):
        whole = (elsewhere / "run" / name).read_bytes()
        for length in {len(whole) // 3, len(whole) // 2, len(whole) - 20}:
            shutil.rmtree("cut", ignore_errors=True)
            shutil.copytree("run", "cut")
            (elsewhere / "cut" / name).write_bytes(whole[:length])
            with pytest.raises(ConfigError, match=said):
                replay(Path("cut"))
    shutil.copy("run/checkpoints/best.ckpt", "cut/checkpoints/best.ckpt")
    write_json(elsewhere / "cut/environment.json", {"starts": [{}]})
    with pytest.raises(ConfigError, match="run=cut: environment.json is missing or does not record a start"):
        replay(Path("cut"))


def test_what_cannot_be_made_again_is_one_line(compose_config: Compose, elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="run=nowhere: no run that has ended"):
        replay(Path("nowhere"))
    train(compose_config(*TINY_COPY, "paths.run_dir=run"))
    cfg = OmegaConf.load("run/config.yaml")
    cfg.task.of_another_time = 1
    OmegaConf.save(cfg, "run/config.yaml")
    with pytest.raises(ConfigError, match="run=run: .*of_another_time.* this version is not its own, check out"):
        replay(Path("run"))
