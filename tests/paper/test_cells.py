"""Which runs count for which published number, and what is said of them."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from conftest import Compose, MakeRecord
from wrnn.config import identity
from wrnn.paper.cells import Experiments, answer, deviations, experiment_names, place, published, read_cells
from wrnn.paper.ledger import Ledger, Record

CONTENT = published()
NAMES = experiment_names(CONTENT)


def ledger(*records: Record) -> Ledger:
    return Ledger(Path(), list(records), [])


def verdict(experiments: Experiments, table: str, row: str, column: str, *records: Record) -> tuple[str, str]:
    (cell,) = (c for c in read_cells(CONTENT) if (c.table, c.row, c.column) == (table, row, column))
    found = answer(cell, place(ledger(*records), experiments, cell.experiments), experiments)
    return found.verdict, found.remark


def test_every_experiment_is_held_against_something_and_no_two_are_the_same(
    experiments: Experiments, make_record: MakeRecord
) -> None:
    assert set(NAMES) == set(experiments.names) - {"quickstart"}
    settings = [
        tuple(sorted((key, str(value)) for key, value in experiments.settings(n, "corrected").items())) for n in NAMES
    ]
    assert len(set(settings)) == len(NAMES)
    for one, other in permutations(NAMES, 2):
        cfg, wanted = (experiments.config(name, "corrected") for name in (one, other))
        if (cfg.model.name, cfg.task.name) == (wanted.model.name, wanted.task.name):
            assert deviations(experiments.settings(other, "corrected"), make_record(one)), (one, other)


@pytest.mark.parametrize(
    ("words", "home", "differs"),
    [
        (("model=wrnn", "task=copy", "task.datamodule.delay=80", "seed=7"), "wrnn_copy_t80", {}),
        (("model=irnn", "task=copy", "task.datamodule.delay=0", "init=pytorch"), "irnn_copy_t0", {}),
        (("experiment=wrnn_copy_t80", "preset=released_code"), "wrnn_copy_t80", {}),
        (("model=wrnn", "task=nscifar10", "images=cifar10_folder"), "wrnn_nscifar10", {}),
        (("model=wrnn", "task=psmnist", "init.bias=pytorch"), "wrnn_psmnist",
         {"model.core.init.bias": ("zero", "pytorch")}),
        (("experiment=wrnn_copy_t10_random_u", "trainer.gradient_clip_val=1"), "wrnn_copy_t10_random_u",
         {"trainer.gradient_clip_val": (None, 1)}),
        (("model=wrnn", "task=psmnist", "images=fake_mnist"), "wrnn_psmnist", {"data": ("MNIST", "FakeData")}),
        (("model=wrnn", "task=psmnist", "images.train._target_=torchvision.datasets.FashionMNIST"), "wrnn_psmnist",
         {"data": ("MNIST", "FashionMNIST, MNIST")}),
        (("model=wrnn", "task=adding", "init=shift", "init.weight.velocity=0.5"), "wrnn_adding_t100",
         {"model.core.init.weight": ("shift", "shift(velocity=0.5)")}),
    ],
)  # fmt: skip
def test_a_run_belongs_to_the_experiment_whose_settings_it_has(
    experiments: Experiments, compose_config: Compose, make_record: MakeRecord, words: tuple[str, ...], home: str,
    differs: dict[str, Any],
) -> None:  # fmt: skip
    cfg = compose_config(*words)
    near = [name for name in NAMES if name.startswith(home[: home.rindex("_")])]
    run = replace(make_record(home, preset=cfg.preset), settings=identity(cfg))
    placed = place(ledger(run), experiments, near)
    if differs:
        assert placed.variations == {home: [(run, differs)]}
    else:
        assert placed.runs == {home: [run]}


def test_a_run_from_before_a_key_existed_still_counts_and_a_shortened_test_does_not(
    experiments: Experiments, make_record: MakeRecord
) -> None:
    run = make_record("wrnn_copy_t30")
    del run.settings["model"]["core"]["nonlinearity"]
    assert deviations(experiments.settings("wrnn_copy_t30", "corrected"), run) == {}
    for part in (0, 0.1, 1):  # none; a tenth of the batches; one batch
        run.budget["limit_test_batches"] = part
        found = deviations(experiments.settings("wrnn_copy_t30", "corrected"), run)
        assert found == {"trainer.limit_test_batches": (None, part)}
    run.budget.update(limit_test_batches=1.0, callbacks={"best": "null", "solved_step": {"threshold": 0.1}})
    found = deviations(experiments.settings("wrnn_copy_t30", "corrected"), run)
    assert found == {"callbacks.best": (None, "null"), "callbacks.solved_step.threshold": (None, 0.1)}


def test_when_a_run_was_validated_and_how_it_was_clipped_are_settings(
    experiments: Experiments, compose_config: Compose, make_record: MakeRecord
) -> None:
    clip = "trainer.gradient_clip_algorithm"
    run = replace(
        make_record("indrnn_psmnist"), settings=identity(compose_config("experiment=indrnn_psmnist", f"{clip}=norm"))
    )
    run.budget["val_check_interval"] = 0.05
    found = deviations(experiments.settings("indrnn_psmnist", "corrected"), run)
    assert found == {clip: ("value", "norm"), "trainer.val_check_interval": (None, 0.05)}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], ("not run", "")),
        ([(0, 1, 0.966), (1, 1, 0.965), (2, 1, 0.9)], ("reproduced", "")),
        ([(0, 1, 0.95), (1, 1, 0.95), (2, 1, 0.95)], ("differs", "")),
        ([(0, 1, 0.98), (1, 1, 0.95), (2, 1, 0.95)], ("differs", "")),
        ([(0, 1, 0.966), (1, 1, 0.966)], ("partial budget", "2 of 3 seeds, inside the band")),
        ([(0, 1, 0.966), (0, 1, 0.966), (1, 1, 0.966)], ("partial budget", "2 of 3 seeds, inside the band")),
        (
            [(0, 0.5, 0.966), (1, 0.5, 0.966), (2, 0.5, 0.966)],
            ("partial budget", "50 % of the budget, inside the band"),
        ),
        ([(0, 1, 0.95), (1, 0.5, 0.966), (2, 0.5, 0.966)], ("partial budget", "1 of 3 seeds, outside the band")),
        ([(0, 1, 0.95), (1, 1, 0.95), (2, 2, 0.966)], ("partial budget", "2 of 3 seeds, outside the band")),
    ],
)
def test_a_verdict_asks_for_budget_seeds_and_band(
    experiments: Experiments, make_record: MakeRecord, runs: list[Any], expected: tuple[str, str]
) -> None:
    records = [make_record("wrnn_psmnist", seed, share, **{"test/accuracy": acc}) for seed, share, acc in runs]
    row = "wRNN, 16 channels, 256 units, 47k"
    assert verdict(experiments, "Table 2", row, "psmnist", *records) == expected
    other = [make_record("wrnn_psmnist", s, 1, "released_code", **{"test/accuracy": 0.966}) for s in range(3)]
    assert verdict(experiments, "Table 2", row, "psmnist", *records, *other) == expected


def test_never_solved_is_reproduced_by_runs_that_never_solve_it(
    experiments: Experiments, make_record: MakeRecord
) -> None:
    never = [make_record("irnn_adding_t700", seed, solved_step=None, **{"test/mse": 0.16}) for seed in range(3)]
    assert verdict(experiments, "Table 1", "iRNN solved at", "700", *never) == ("reproduced", "")
    once = make_record("irnn_adding_t700", 2, solved_step=5000, **{"test/mse": 0.01})
    assert verdict(experiments, "Table 1", "iRNN solved at", "700", *never[:2], once) == ("differs", "")
    late = [make_record("wrnn_adding_t700", seed, solved_step=step) for seed, step in enumerate([3000, 3500, None])]
    assert verdict(experiments, "Table 1", "wRNN solved at", "700", *late) == ("reproduced", "")  # the best of them
    assert verdict(experiments, "Table 7", "adding T=700, solved at", "wRNN", *late) == ("differs", "")  # no mean


def test_a_step_that_one_published_seed_reached_is_held_against_those_that_do(
    experiments: Experiments, make_record: MakeRecord
) -> None:
    def both(*runs: tuple[int | None, float]) -> list[str]:
        records = [
            make_record("irnn_adding_t400", seed, solved_step=step, **{"test/mse": mse})
            for seed, (step, mse) in enumerate(runs)
        ]
        rows = ("adding T=400, solved at", "adding T=400, MSE")
        return [verdict(experiments, "Table 7", row, "iRNN", *records)[0] for row in rows]

    assert both((28_000, 1e-4), (None, 0.16), (None, 0.17)) == ["reproduced", "reproduced"]
    assert both((None, 0.166), (None, 0.166), (None, 0.166)) == ["differs", "differs"]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(0, 0.02, 900), (1, 0.02, 1100), (2, 0.01, 1000)], ("reproduced", "")),
        ([(0, 0.02, 5000), (1, 0.02, 5000), (2, 1, 5000)], ("differs", "")),
        ([(0, 1, 900), (1, 0.02, 900)], ("partial budget", "2 of 3 seeds, inside the band")),
        ([(0, 0.02, 900), (0, 0.5, None), (1, 0.02, 900), (2, 0.02, 900)], ("reproduced", "")),
        ([(0, 0.02, 900), (1, 0.02, 900), (2, 0.02, 900), (7, 0.001, None)], ("reproduced", "")),
        ([(0, 0.02, 900), (1, 0.02, 900), (2, 0.01, None)], ("partial budget", "1 % of the budget, inside the band")),
    ],
)
def test_a_solved_step_needs_no_more_budget_than_that(
    experiments: Experiments, make_record: MakeRecord, runs: list[Any], expected: tuple[str, str]
) -> None:
    records = [make_record("wrnn_adding_t1000", seed, share, solved_step=step) for seed, share, step in runs]
    assert verdict(experiments, "Table 1", "wRNN solved at", "1000", *records) == expected


def test_of_two_kernels_the_better_counts(experiments: Experiments, make_record: MakeRecord) -> None:
    metric = "test/cross_entropy_over_50"
    records = [make_record("wrnn_copy_t0_random_u", seed, **{metric: 1e-10}) for seed in range(3)]
    records += [make_record("wrnn_copy_t0_dirac_u", seed, **{metric: 1e-3}) for seed in range(3)]
    assert verdict(experiments, "Table 4", "- u-shift-init", "0", *records) == ("reproduced", "")
    half = ("partial budget", "outside the band, but not all of wrnn_copy_t0_random_u")
    assert verdict(experiments, "Table 4", "- u-shift-init", "0", *records[3:]) == half
