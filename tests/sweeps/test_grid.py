"""The named sweeps hold the runs that the paper's searches held."""

from pathlib import Path

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from conftest import CONF, Compose, option_names
from wrnn import schema
from wrnn.sweeps.plan import PlannedRun, Status, estimate

RUNS = {
    "sweep=seeds": 3,
    "sweep=optimizers": 15,
    "sweep=copy_grid": 5 * 3 * 3,
    "sweep=copy_grid model=wrnn,irnn": 45 + 45 * 2 * 2 * 2,
    "sweep=copy_grid model=irnn init=shift": 45 * 2 * 2,
    "sweep=adding_grid": 5 * 3 * 5,
    "sweep=smnist_grid": 3 * 2 * 2 * 4,
    "sweep=smnist_grid model=irnn": 3 * 2 * 2,
    "sweep=psmnist_grid": 3 * 5 * 2 * 2,
    "sweep=nscifar10_grid model=wrnn,irnn": 3 * 2 + 3 * 4,
    "sweep=ablation_copy": 2 * 3 * 2 * 4,
    "sweep=ablation_copy task.datamodule.delay=30": 12,
    "sweep=size_psmnist": 4 * 4,
    "sweep=size_psmnist model=irnn": 4 * 2 * 3 * 4,
    "sweep=irnn_psmnist_extra": 3 * 5 * 2 * 4,
    "experiment=quickstart sweep=seeds seed=7,8": 2,
    "sweep=zoo": 2 * len(option_names("model")),
    "sweep=zoo_search model=lstm task=psmnist": 3 * 2,
}


@pytest.mark.parametrize("words", RUNS)
def test_a_named_sweep_holds_the_runs_of_its_search(words: str) -> None:
    schema.register()
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(CONF)))
    try:
        master = hydra.compose_config("config", words.split(), RunMode.MULTIRUN, with_log_configuration=False)
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, task_function=lambda cfg: None,
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master)),
        )  # fmt: skip
        found = sweeper.combinations(list(master.hydra.overrides.task))
        assert len(found) == len({tuple(overrides) for overrides in found}) == RUNS[words]
        for overrides in (found[0], found[-1]):
            hydra.config_loader.load_sweep_config(master, overrides)
        experiment = "quickstart_" if "experiment" in words else ""
        named = words.split("sweep=")[1].split()[0]
        assert master.hydra.sweep.dir.endswith(f"/runs/{experiment}{named}")
    finally:
        GlobalHydra.instance().clear()


def test_every_grid_is_counted() -> None:
    grids = {name for name in option_names("sweep") if not name.startswith("optuna_")}
    assert grids == {words.split("sweep=")[1].split()[0] for words in RUNS}


def test_the_estimate_goes_by_the_runs_that_are_most_alike(compose_config: Compose, tmp_path: Path) -> None:
    def run(*choices: str) -> PlannedRun:
        return PlannedRun((), tmp_path, compose_config("task=copy", *choices))

    done = [(run("task.datamodule.delay=10"), Status("finished", seconds=100.0)),
            (run("task.datamodule.delay=80"), Status("finished", seconds=300.0)),
            (run("model=irnn"), Status("finished", seconds=20.0))]  # fmt: skip
    todo = [run("task.datamodule.delay=80", "seed=1"), run("task.datamodule.delay=30"), run("model=irnn", "seed=1")]
    assert "about 0:08:40 left, 1 at a time, judging by 3 done" in estimate(todo, done, 1)  # 300 + 200 + 20 seconds
    assert "about 0:04:20 left, 2 at a time" in estimate(todo, done, 2)
    assert "no run is done yet" in estimate(todo, [], 2)
