"""The report says what is in the ledger, and nothing else."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from conftest import CONF, ROOT, Compose, MakeRecord
from wrnn.paper import ledger as book
from wrnn.paper.cells import Experiments, experiments_in
from wrnn.paper.command import main
from wrnn.paper.followed_up import entries, sentence
from wrnn.paper.report import LEDGER_WORD, claims_frame, costs_frame, curves_frame, faster_frame, judge, markdown
from wrnn.paper.state_figures import load, wave_rows
from wrnn.schema import compose_config
from wrnn.training import train


def write(ledger: Path, output: Path, *more: str) -> str:
    main(ROOT, ["write", "--ledger", str(ledger), "--output", str(output), *more])
    return (output / "paper.md").read_text()


def test_a_number_of_the_ledger_is_a_number_of_the_table(
    make_record: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        path = book.append(tmp_path, make_record("linear_smnist", seed, **{"test/accuracy": 0.9251}))
    before = write(tmp_path, tmp_path / "out", "--no-figures")
    assert "1 reproduced, 0 differs, 0 partial budget, 123 not run" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    altered = json.loads(lines[1])
    altered["results"]["test/accuracy"] = 0.9473
    path.write_text("\n".join([lines[0], json.dumps(altered), lines[2]]) + "\n{broken\n")
    after = write(tmp_path, tmp_path / "out", "--no-figures")
    out, err = capsys.readouterr()
    assert "0 reproduced, 1 differs" in out and "linear_smnist.jsonl:4: skipped, not a whole line" in err

    def row(text: str) -> list[str]:
        (line,) = (line for line in text.splitlines() if line.startswith("| FC: one linear layer"))
        return [cell.strip() for cell in line.split("|")[2:8]]

    assert row(before)[:5] == ["smnist", "92.4", "92.51", "0", "3"] and row(before)[5] == "reproduced"
    assert row(after)[2] == "94.73" and row(after)[5] == "differs"
    assert (tmp_path / "out/paper.tex").read_text().count(r"\begin{table}") == 10


def test_what_was_not_run_stands_there_with_a_command_that_runs_it(tmp_path: Path) -> None:
    empty = tmp_path / "ledger"
    empty.mkdir()
    text = write(empty, tmp_path, "--no-figures")
    assert "**124 cells: 0 reproduced, 0 differs, 0 partial budget, 124 not run.**" in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("    python src/train.py")]
    assert len(commands) == 10  # for the claims, seven tables, a schedule of ours, and what figures alone show
    named = set()
    for line in commands:
        words = shlex.split(line)[3:]
        assert words[-1] == LEDGER_WORD and words[-2] == "seed=0,1,2"
        named |= set(words[0].removeprefix("experiment=").split(","))
    assert named == set(experiments_in(CONF).names) - {"quickstart"}
    assert compose_config("experiment=wrnn_copy_t80", "seed=2", LEDGER_WORD).task.datamodule.delay == 80


def test_claims(make_record: MakeRecord, experiments: Experiments) -> None:
    def states(*records: book.Record) -> dict[str, tuple[str, str]]:
        paper = judge(book.Ledger(Path(), list(records), []), experiments)
        rows = [row for _, row in claims_frame(paper.claims).iterrows()]
        return {row["claim"].split(":")[0]: (row["measured"], row["state"]) for row in reversed(rows)}  # first of each

    loss = "test/cross_entropy"
    waves = [make_record("wrnn_copy_t30", seed, **{loss: 1e-8}) for seed in range(3)]
    dense = [make_record("irnn_copy_t30", seed, **{loss: 0.1}) for seed in range(3)]
    assert states()["Copy, T = 30"] == ("-", "not run")
    assert states(*waves, *dense)["Copy, T = 30"] == ("1e+07", "holds")
    assert states(*waves, *dense[:2])["Copy, T = 30"] == ("1e+07", "so far yes")
    exact = [make_record("wrnn_copy_t30", seed, **{loss: 0.0}) for seed in range(3)]
    assert states(*exact, *dense)["Copy, T = 30"] == ("inf", "holds")
    short = make_record("irnn_copy_t30", share=0.1, **{loss: 0.1})
    assert states(*waves, short)["Copy, T = 30"] == ("-", "not yet decidable")  # after 60,000 steps against 6,000
    learned = {"val/cross_entropy": ([3000, 6000, 9000, 60000], [2e-5, 3e-5, 1e-6, 1e-8])}
    waves[0], short = replace(waves[0], curves=learned), replace(short, curves={"val/cross_entropy": ([6000], [0.2])})
    assert states(*waves, short)["Copy, T = 30"] == ("1e+04 (validation, up to step 6,000)", "so far no")
    never = [make_record("irnn_adding_t100", 0, share=0.5, solved_step=None)]
    fast = [make_record("wrnn_adding_t100", 0, solved_step=500)]
    assert states(*never, *fast)["Adding, T = 100"] == ("more than 60", "so far yes")
    some = [make_record("irnn_adding_t100", seed, solved_step=step) for seed, step in enumerate((900, 900, None))]
    slow = [make_record("wrnn_adding_t100", seed, solved_step=3000) for seed in range(3)]
    assert states(*some, *slow)["Adding, T = 100"] == ("more than 6.87", "not yet decidable")
    ours = [make_record("wrnn_adding_t1000", seed, share=0.02, solved_step=900 + 100 * seed) for seed in range(3)]
    (solved,) = (one for one in judge(book.Ledger(Path(), ours, []), experiments).claims if "1.7k" in one.text)
    assert (solved.found, solved.state) == ("1000", "holds")
    assert solved.basis == "wrnn_adding_t1000: 1000 ± 100, n=3, solved"
    unlike = []
    for name, share, values in (
        ("wrnn_psmnist", 3 / 120, [0.7, 0.8, 0.9]),
        ("irnn_psmnist", 5 / 250, [0.5, 0.6, 0.7, 0.8, 0.9]),
    ):
        run = make_record(name, share=share, **{"test/accuracy": 0.5})
        run.budget["steps"] = len(values)
        unlike.append(replace(run, curves={"val/accuracy": (list(range(1, len(values) + 1)), values)}))
    assert states(*unlike)["psMNIST"] == ("+20.00 (validation, up to epoch 3)", "so far yes")
    few = [make_record(f"{name}_psmnist", seed, **{"test/accuracy": value}) for seed in (0, 1)
           for name, value in (("wrnn", 0.9), ("irnn", 0.8))]  # fmt: skip
    assert states(*few)["psMNIST"] == ("+10.00", "so far yes")  # 120 epochs and 250, as published
    longer = [
        replace(
            run,
            seed=seed,
            curves={"val/accuracy": (steps, values)},
            budget={**run.budget, "steps": steps[-1], "epochs": epochs},
        )
        for run, seed, epochs, steps, values in (
            (unlike[0], 0, 4.4944, [445, 1780, 2000], [0.7, 0.95, 0.96]),
            (unlike[1], 0, 4.0, [445, 1780], [0.5, 0.6]),
            (unlike[1], 1, 4.0, [445, 1780], [0.5, 0.7]),
            (unlike[1], 2, 8.0, [1780, 3560], [0.8, 0.9]),
        )
    ]
    found = states(*longer)["psMNIST"]
    assert found == ("+25.00 (validation, up to epoch 4)", "so far yes")  # 95 less 60, 70 and 80; not after 8 epochs
    three = [
        make_record(name, seed, **{"test/accuracy": value})
        for name, value in (("wrnn_smnist", 0.97), ("wrnn_smnist_random_u", 0.95), ("wrnn_smnist_dirac_u", 0.96))
        for seed in range(3)
    ]
    assert states(*three)["Start of the kernel on sMNIST"] == ("97 > 95 > 96", "does not hold")


def test_a_short_run_is_held_against_the_published_curve(make_record: MakeRecord, experiments: Experiments) -> None:
    def epochs(seed: int, share: float, *values: float) -> book.Record:
        run = make_record("wrnn_psmnist", seed, share)
        per_epoch = round(run.budget["steps"] / run.budget["epochs"])
        steps = [per_epoch * (index + 1) for index in range(len(values))]
        return replace(run, curves={"val/accuracy": (steps, list(values))})

    runs = [epochs(0, 1 / 120, 0.9), epochs(0, 3 / 120, 0.91, 0.92, 0.94), epochs(1, 1 / 120, 0.93)]
    frame = curves_frame(judge(book.Ledger(Path(), runs, []), experiments))
    assert frame.drop(columns="experiment").to_numpy().tolist() == [
        ["1 epoch", "93.4", "92", "1.41", "2", "-1.4 points"], ["3 epochs", "94.5", "94", "", "1", "-0.5 points"],
    ]  # fmt: skip
    fast = replace(
        make_record("psmnist_fast", **{"test/accuracy": 0.9631}), curves={"val/accuracy": ([500, 1000], [0.92, 0.935])}
    )
    frame = faster_frame(judge(book.Ledger(Path(), [fast, *runs], []), experiments))
    assert frame.drop(columns="run").to_numpy().tolist() == [
        ["psmnist_fast", "0", "10", "93.5", "3, never", "96.31"],
        ["wrnn_psmnist", "0", "3", "94", "3, never", "-"], ["wrnn_psmnist", "1", "1", "93", "3, 1", "-"],
    ]  # fmt: skip


def test_what_was_tried_is_told_with_the_numbers_of_the_ledger(
    make_record: MakeRecord, experiments: Experiments
) -> None:
    runs = [make_record("irnn_adding_t100", solved_step=None)]
    for seed, step in enumerate((10_000, 20_000, 30_000)):
        runs.append(make_record("irnn_adding_t100", seed, step / 60_000, solved_step=step))
        runs[-1].settings["model"]["core"]["input_init"]["bias"] = "pytorch"
    paper = judge(book.Ledger(Path(), runs, []), experiments)
    entry = {
        "experiment": "irnn_adding_t100", "metric": "solved_step", "asked": "Why?", "found": "So.",
        "tried": [{"model.core.input_init.bias": "pytorch"}, {"preset": "released_code"}],
    }  # fmt: skip
    assert sentence(entry, paper.placed, experiments) == (
        "*Why?* solved_step: `irnn_adding_t100` never (n=1, 60,000 steps); with `input_init.bias=pytorch`"
        " 20,000 ± 10,000 (n=3, 10,000 to 30,000 steps). So."
    )
    committed = judge(book.load(ROOT / "results/ledger"), experiments)
    assert all(sentence(one, committed.placed, experiments) for one in entries())


def test_what_is_missing_has_a_price_where_it_was_timed(make_record: MakeRecord, experiments: Experiments) -> None:
    runs = [
        replace(make_record("wrnn_copy_t10", seed), steps_per_second=speed) for seed, speed in ((0, 10.0), (1, 100.0))
    ]
    runs += [replace(make_record("irnn_copy_t80", share=0.1), steps_per_second=100.0)]
    runs += [replace(make_record("wrnn_copy_t30"), steps_per_second=None)]
    hardware = {"cpu": "none", "threads": 1, "gpu": None}  # two machines' time is no price
    moved = {**hardware, "before": [{**hardware, "gpu": "fast"}]}
    runs += [
        replace(make_record(name, 1, share=0.1), steps_per_second=1e6, hardware=moved)
        for name in ("irnn_copy_t80", "irnn_copy_t10")
    ]
    frame, untimed = costs_frame(judge(book.Ledger(Path(), runs, []), experiments))
    assert frame[["experiment", "lacks", "hours"]].to_numpy().tolist() == [
        ["irnn_copy_t80", "3 x 60,000 steps", "0.5"], ["wrnn_copy_t10", "1 x 60,000 steps", "0.167"],
    ]  # fmt: skip
    assert {"wrnn_copy_t30", "irnn_copy_t10"} <= set(untimed) and "wrnn_copy_t10" not in untimed


def test_every_figure_is_drawn_also_where_nothing_was_run(tmp_path: Path, make_record: MakeRecord) -> None:
    book.append(tmp_path, make_record("wrnn_adding_t100", share=0.1, **{"test/mse": 0.1, "solved_step": 400}))
    text = write(tmp_path, tmp_path)
    numbers = [*range(1, 11), *range(13, 19)]
    drawn = {f"figure_{number:02d}.{ending}" for number in numbers for ending in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == drawn
    assert all(f"![Figure {number}](figures/figure_{number:02d}.png)" in text for number in numbers)


def test_damaged_weights_are_named_and_cost_their_panel_alone(
    make_record: MakeRecord, experiments: Experiments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_record("wrnn_copy_t0", **{"test/cross_entropy": 1e-9})
    book.append(tmp_path, run)
    path = book.weights_path(tmp_path, run)
    path.parent.mkdir()
    for damaged in (b"PK half a file", None):
        path.write_bytes(damaged) if damaged else torch.save({"core": {}}, path)
        paper = judge(book.load(tmp_path), experiments)
        assert load(paper, "wrnn_copy_t0") is None
        assert f"weights/{run.id}.pt: skipped, not the weights of wrnn_copy_t0" in capsys.readouterr().err
        assert len(paper.ledger.problems) == 1


def test_the_committed_report_is_that_of_the_committed_ledger(experiments: Experiments) -> None:
    found = book.load(ROOT / "results/ledger")
    assert not found.problems
    tables, waves = (ROOT / "results/paper.md").read_text().split("## Waves of trained models")
    paper = judge(found, experiments)
    assert markdown(paper).split("\n## Figures\n")[0].rstrip() == tables.rstrip()
    waves, runs = waves.split("\n## Figures\n")
    assert all(one.id[:6] in runs for one in found.records)
    paper.placed.runs = {"wrnn_copy_t30": paper.placed.runs["wrnn_copy_t30"]}
    for row in wave_rows(paper):
        assert any(all(value in line for value in row.values()) for line in waves.splitlines()), row
    sizes = [path.stat().st_size for path in (ROOT / "results/ledger").rglob("*") if path.is_file()]
    assert sum(sizes) < 10 * 2**20


def test_a_record_is_repeated_by_its_own_command(compose_config: Compose) -> None:
    records = book.load(ROOT / "results/ledger").records
    cheapest = min((one for one in records if one.task == "copy"), key=lambda one: one.budget["steps"])
    assert cheapest.budget["steps"] <= 100
    results = train(compose_config(*cheapest.overrides, "trainer=cpu"))
    assert results["identity"] == cheapest.identity
    for key, value in cheapest.results.items():
        if key.startswith(("val/", "test/", "parameters")):
            assert results[key] == pytest.approx(value, rel=5e-3), key  # another CPU rounds otherwise: 1e-3 was seen
    assert asdict(cheapest)["results"]["tested"] == results["tested"]
