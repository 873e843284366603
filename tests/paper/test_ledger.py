"""The ledger keeps what ended, loses nothing, and says what it cannot read."""

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import TINY_COPY, Compose, MakeRecord
from wrnn.errors import ConfigError, DivergedError
from wrnn.paper import ledger as book
from wrnn.training import train


def test_a_run_that_ends_writes_one_record(compose_config: Compose, tmp_path: Path) -> None:
    where = tmp_path / "ledger"
    cfg = compose_config(*TINY_COPY, f"paths.ledger_dir={where}")
    results = train(cfg)
    (found,) = book.load(where).records
    assert found.results == results and found.identity == results["identity"]
    assert found.budget["steps"] == 15 and (found.model, found.task, found.seed) == ("wrnn", "copy", 0)
    assert found.curves["val/cross_entropy"][0] == [6, 12, 15] and len(found.curves["train/loss"][0]) == 15
    with pytest.raises(ConfigError, match="holds this run already"):
        book.append(where, book.record(Path(cfg.paths.run_dir)))
    train(
        compose_config(*TINY_COPY, f"paths.ledger_dir={where}", "ckpt_path=last", f"paths.run_dir={cfg.paths.run_dir}")
    )
    assert len(book.load(where).records) == 1  # tested again, the same run
    environment = Path(cfg.paths.run_dir) / "environment.json"
    starts = json.loads(environment.read_text())["starts"]
    for start, git in zip(
        starts, ({"commit": "a" * 40, "changed": []}, {"commit": "b" * 40, "changed": ["x"]}), strict=True
    ):
        start["git"] = git
    environment.write_text(json.dumps({"starts": starts}))
    assert book.record(Path(cfg.paths.run_dir)).commits == ["a" * 9, "b" * 9 + "+"]
    here = found.hardware
    assert "before" not in book.record(Path(cfg.paths.run_dir)).hardware
    starts[0]["hardware"] = {**here, "gpu": "NVIDIA H200"}
    environment.write_text(json.dumps({"starts": [starts[0], *starts]}))
    assert book.record(Path(cfg.paths.run_dir)).hardware == {**here, "before": [{**here, "gpu": "NVIDIA H200"}]}
    path = book.keep_weights(where, found, Path(cfg.paths.run_dir))
    kept = torch.load(path, weights_only=True)
    assert kept["inputs"].shape == (23, 10) and set(kept["core"]) >= {"kernel", "bias"}
    mine = {"_target_": "lightning.Callback"}
    cfg.callbacks = {**cfg.callbacks, "best": None, "mine": mine, "give_up": {"deadlines": [[9, 0]]}}
    cfg.callbacks.solved_step.threshold = 0.5  # copy has none of its own, and no number of ours is a step
    (Path(cfg.paths.run_dir) / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    unusual = book.record(Path(cfg.paths.run_dir)).budget["callbacks"]
    assert unusual == {"best": "null", "mine": mine}


def test_a_run_that_does_not_end_writes_none(compose_config: Compose, tmp_path: Path) -> None:
    where = tmp_path / "ledger"
    fatal = ("optimizer=sgd", "optimizer.lr=1e30", "model.core.nonlinearity=identity", "trainer.gradient_clip_val=null")
    cfg = compose_config(*TINY_COPY, f"paths.ledger_dir={where}", *fatal)
    with pytest.raises(DivergedError):
        train(cfg)
    assert not where.exists()
    with pytest.raises(ConfigError, match="has not ended"):
        book.record(Path(cfg.paths.run_dir))


def test_a_ledger_that_cannot_be_written_costs_no_run(
    compose_config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    cfg = compose_config(*TINY_COPY, f"paths.ledger_dir={tmp_path / 'file'}")
    assert train(cfg)["steps"] == 15
    assert f"later: python src/paper.py add {cfg.paths.run_dir}" in capsys.readouterr().out


def test_a_disk_that_fills_up_leaves_the_ledger_as_it_was(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = book.append(tmp_path, make_record("wrnn_copy_t0", seed=0))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="No space left"):
        patched.setattr("os.fsync", full)
        book.append(tmp_path, make_record("wrnn_copy_t0", seed=1))
    assert path.read_bytes() == before


def test_a_curve_is_thinned_between_its_ends() -> None:
    steps, values = book._thinned(list(range(10, 60_010, 10)), [1.23456789 * step for step in range(10, 60_010, 10)])
    assert (len(steps), steps[0], steps[-1], values[0]) == (book.MAX_POINTS, 10, 60_000, 12.346)
    assert values == pytest.approx([1.23456789 * step for step in steps], rel=1e-4)
    assert book._thinned([5], [1.0]) == ([5], [1.0])


def _append_some(where: Path, records: list[book.Record]) -> None:
    for one in records:
        with suppress(ConfigError):  # another was faster
            book.append(where, one)


def test_many_runs_end_at_once(make_record: MakeRecord, tmp_path: Path) -> None:
    records = [make_record("wrnn_copy_t0", seed=seed) for seed in range(40)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_append_some, [tmp_path] * 2, [records[:20] + records[20 + i :: 2] for i in range(2)]))
    found = book.load(tmp_path)
    assert not found.problems and {one.id for one in found.records} == {one.id for one in records}
    assert (
        len((tmp_path / "wrnn_copy.jsonl").read_text().splitlines()) == 40
    )  # the twenty that both had stand there once


def test_bad_lines_are_named_and_skipped_and_nothing_is_overwritten(make_record: MakeRecord, tmp_path: Path) -> None:
    first, second, third = (make_record("wrnn_copy_t0", seed=seed) for seed in range(3))
    path = book.append(tmp_path, first)
    bad = [
        json.dumps(asdict(first)),
        json.dumps({**asdict(first), "schema": 2}),
        '"a word"',
        json.dumps({**asdict(first), "id": "x", "extra": 1}),
        json.dumps({**asdict(first), "id": "x", "budget": {"steps": None}}),
        json.dumps(asdict(second))[:100],
    ]
    with path.open("a") as file:
        file.write("\n".join(bad))  # the last line is cut short, as by a crash
    before = path.read_bytes()
    book.append(tmp_path, third)
    assert path.read_bytes().startswith(before + b"\n")
    found = book.load(tmp_path)
    assert [one.id for one in found.records] == [first.id, third.id]
    wanted = [
        "wrnn_copy.jsonl:2: skipped, the same run as wrnn_copy.jsonl:1",
        "wrnn_copy.jsonl:3: skipped, schema=2: this version reads schema 1",
        "wrnn_copy.jsonl:4: skipped, holds a str",
        "wrnn_copy.jsonl:5: skipped, not a record: misses nothing; unknown extra",
        "wrnn_copy.jsonl:6: skipped, budget.steps=None: must be a number",
        "wrnn_copy.jsonl:7: skipped, not a whole line of JSON",
    ]
    assert len(found.problems) == 6 and all(p.startswith(w) for p, w in zip(found.problems, wanted, strict=True))


def test_a_record_reads_back_as_it_was(make_record: MakeRecord, tmp_path: Path) -> None:
    one = replace(make_record("irnn_adding_t700", **{"test/mse": 0.16}), curves={})
    book.append(tmp_path, one)
    assert book.load(tmp_path).records == [one]
