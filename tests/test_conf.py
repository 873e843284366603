"""Every file of every config group composes and builds; newcomers are found by listing the folders."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conftest import Compose, option_names
from wrnn.config import check, differences, digest, identity
from wrnn.errors import ConfigError
from wrnn.inits import Initializer
from wrnn.training import build

GROUPS = ["init", "input_init", "optimizer", "scheduler", "trainer", "callbacks", "logger", "images"]
TINY = {"num_channels": 2, "ring_size": 8, "hidden_size": 16, "rank": 4, "input_rank": 4, "num_layers": 2}
PAIRS = [(model, task) for model in option_names("model") for task in option_names("task")]


def offline(compose_config: Compose, *overrides: str) -> list[str]:
    """Overrides under which the task of a command line needs no files, and a few sequences are enough."""
    cfg = compose_config(*overrides)
    needed = [*overrides]
    if cfg.images is not None:
        colour = "CIFAR" in str(cfg.images.train._target_)
        needed += ["images=fake_cifar10" if colour else "images=fake_mnist", "task.datamodule.num_val=8"]
    return [*needed, "task.datamodule.batch_size=2"]


@pytest.mark.parametrize(("model", "task"), PAIRS)
def test_every_model_learns_a_batch_of_every_task(compose_config: Compose, model: str, task: str) -> None:
    small = [f"model={model}", f"task={task}"]
    cfg = compose_config(*small)
    small += [f"model.core.{key}={value}" for key, value in TINY.items() if key in cfg.model.core]
    if task == "nscifar10":
        small.append("task.datamodule.sequence_length=40")
    parts = build(compose_config(*offline(compose_config, *small)))
    parts.task.prepare_data()
    parts.task.setup()
    batch = parts.task.make_batch("train", 0, 0)
    assert batch.inputs.shape == (2, parts.task.sequence_length, parts.task.input_size)
    outputs = parts.module(batch.inputs)
    assert outputs.shape[-1] == parts.task.output_size
    loss = parts.objective.loss(outputs, batch.targets)
    loss.backward()
    learned = [weight for weight in parts.module.parameters() if weight.requires_grad]
    assert torch.isfinite(loss) and learned and all(weight.grad is not None for weight in learned)


@pytest.mark.parametrize("choice", [f"{group}={option}" for group in GROUPS for option in option_names(group)])
def test_every_option_builds(compose_config: Compose, tmp_path: Path, choice: str) -> None:
    extra = ["trainer.max_steps=10"] if choice == "scheduler=onecycle" else []
    extra += ["task=nscifar10"] if "cifar" in choice else []
    cfg = compose_config("task=psmnist", choice, f"paths.run_dir={tmp_path}", *extra)
    check(cfg)
    parts = build(cfg)
    for node in (*(cfg.callbacks or {}).values(), *(cfg.logger or {}).values()):
        if "wandb" not in node._target_:  # which wants an account; tests/test_wandb.py
            instantiate(node)
    if choice.startswith("trainer"):
        assert cfg.trainer.accelerator in ("auto", "cpu", "gpu")
        instantiate(cfg.trainer, logger=False, **({} if torch.cuda.is_available() else {"accelerator": "cpu"}))
    if choice.startswith(("optimizer", "scheduler")):
        parts.module.configure_optimizers()


@pytest.mark.parametrize(
    "choice", [f"{group}={o}" for group in ("experiment", "sweep", "debug") for o in option_names(group)]
)
def test_experiments_and_sweeps_build_with_every_model(compose_config: Compose, choice: str) -> None:
    build(compose_config(choice))


def test_a_core_without_a_choice_of_loops_says_so(compose_config: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    build(compose_config("model=indrnn", "task=copy", "recurrence=reference"))
    assert "recurrence=reference: model=indrnn takes none; ignored" in "".join(capsys.readouterr())


def test_every_pairing_belongs_to_a_model_and_a_task() -> None:
    assert set(option_names("pairing")) <= {f"{model}_{task}" for model, task in PAIRS}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (("model=wrnn", "task=psmnist"), (1e-4, 100, [100], 120, -1)),
        (("model=irnn", "task=psmnist"), (1e-4, 1000, [100, 200], 250, -1)),
        (("model=wrnn", "task=smnist"), (1e-4, 1, [100], 120, -1)),
        (("model=wrnn", "task=nscifar10"), (1e-4, None, [100, 200], 250, -1)),
        (("model=wrnn", "task=nscifar10", "preset=released_code"), (1e-4, None, [100, 200], 120, -1)),
        (("model=wrnn", "task=copy"), (1e-3, None, [], -1, 60000)),
        (("model=wrnn", "task=copy", "task.datamodule.delay=480"), (1e-4, 1, [], -1, 60000)),
        (("model=irnn", "task=copy"), (1e-4, 1, [], -1, 60000)),
        (("model=irnn", "task=adding", "task.datamodule.sequence_length=700"), (1e-4, 100, [], -1, 60000)),
        (("model=wrnn", "task=adding", "task.datamodule.sequence_length=123"), (1e-4, 10, [], -1, 60000)),
    ],
)
def test_a_bare_pair_has_the_settings_of_the_paper(
    compose_config: Compose, choices: tuple[str, ...], expected: tuple[object, ...]
) -> None:
    cfg = compose_config(*choices)
    found = (cfg.optimizer.lr, cfg.trainer.gradient_clip_val, list(cfg.scheduler.drop_epochs))
    assert (*found, cfg.trainer.max_epochs, cfg.trainer.max_steps) == expected


@pytest.mark.parametrize(
    ("model", "task", "preset", "weights", "biases"),
    [
        ("wrnn", "psmnist", "corrected", ("shift_", "ones_"), ("zero", "zero")),
        ("wrnn", "psmnist", "released_code", ("shift_", "ones_"), ("pytorch", "zero")),
        ("irnn", "copy", "corrected", ("identity_", "normal_"), ("zero", "zero")),
        ("irnn", "psmnist", "released_code", ("identity_", None), ("zero", "pytorch")),
        ("wrnn input_init=normal", "copy", "released_code", ("shift_", "normal_"), ("pytorch", "pytorch")),
        ("irnn input_init=ones", "copy", "released_code", ("identity_", "ones_"), ("zero", "zero")),
        ("irnn init=pytorch", "copy", "released_code", (None, "normal_"), ("pytorch", "pytorch")),
        ("irnn init=pytorch", "copy", "corrected", (None, "normal_"), ("zero", "zero")),
    ],
)
def test_a_preset_sets_the_starts(
    compose_config: Compose,
    model: str,
    task: str,
    preset: str,
    weights: tuple[str | None, ...],
    biases: tuple[str, ...],
) -> None:
    core = build(compose_config(*f"model={model}".split(), f"task={task}", f"preset={preset}")).core
    starts = [getattr(core, name) for name in ("init", "input_init")]
    assert all(isinstance(start, Initializer) for start in starts)
    assert tuple(start.weight and start.weight.func.__name__ for start in starts) == weights
    assert tuple(start.bias for start in starts) == biases


def test_a_preset_sets_the_task(compose_config: Compose) -> None:
    def task(name: str, preset: str) -> object:
        return compose_config(f"task={name}", f"preset={preset}").task

    assert task("copy", "released_code").datamodule.layout == "code"
    assert task("copy", "released_code").objective.loss_scale == "per_batch"
    assert task("adding", "released_code").monitor.solved_metric == "train/mse"
    assert task("smnist", "released_code").monitor.select == "last"
    assert task("psmnist", "released_code").datamodule.permutation_seed is None
    assert task("nscifar10", "paper_text").datamodule.noise == "per_sample"
    assert task("nscifar10", "corrected").datamodule.noise == "fixed"


def test_the_identity_changes_with_the_result_and_with_nothing_else(compose_config: Compose, tmp_path: Path) -> None:
    base = identity(compose_config())
    same = ["logger=none", "paths.data_dir=/elsewhere", "recurrence=reference", "trainer.max_epochs=3", "trainer=cpu"]
    other = ["seed=1", "optimizer.lr=0.1", "init=identity", "model.core.ring_size=8", "preset=released_code"]
    assert all(digest(identity(compose_config(change))) == digest(base) for change in same)
    assert len({digest(identity(compose_config(change))) for change in other} | {digest(base)}) == 6
    OmegaConf.save(compose_config("seed=1"), tmp_path / "saved.yaml", resolve=True)
    saved = OmegaConf.load(tmp_path / "saved.yaml")
    assert differences(base, identity(saved)) == [
        "seed: 0, now 1", "task.datamodule.order_seed: 0, now 1"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+foo=3"], "foo: no such key; there are: seed, run_name"),
        (["+paths.dat_dir=x"], "paths.dat_dir: no such key; did you mean data_dir"),
        (["optimizer.weight_decay=${nowhere.at}"], r"optimizer.weight_decay=\$\{nowhere.at\}: Interpolation key"),
        (["optimizer.lr=nan"], "optimizer.lr=nan: must be a number"),
        (["task=copy", "task.presets.paper_text.t80=nan"], "task.presets.paper_text.t80=nan: must be a number"),
        (["optimizer.betas=[0.9]"], "optimizer.betas=.*: must be a list of 2: a number"),
        (["optimizer.lr=fast"], "optimizer.lr='fast': must be a number"),
        (
            ["trainer.limit_val_batches=true"],
            "trainer.limit_val_batches=True: must be a whole number or a number or null",
        ),
        (["callbacks.best.enable_version_counter=0"], "callbacks.best.enable_version_counter=0: must be true or false"),
        (["callbacks.best=5"], "callbacks.best=5: must be what is built from a _target_ or null"),
        (
            ["callbacks=record_states", "callbacks.record_states.at_steps=3"],
            "at_steps=3: must be a list of a whole number",
        ),
        (["model.paper_init=banana"], "init.weight=banana: must be what is built from a _target_ or null"),
        (["optimizer._partial_=[1]"], r"optimizer._partial_=.*: must be true"),
        (["model.presets.paper_text.bias=one"], "model.presets.paper_text.bias=one: must be one of zero, pytorch"),
        (["+task.presets.corrected.solved=1", "task=adding"], "task.presets.corrected.solved: not every preset has it"),
        (["~model.paper_init._partial_"], "init.weight._partial_=False: must be true"),
        (["optimizer.lr=-3"], "optimizer.lr=-3: must be a number of at least 0"),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0: must be a number of at least 1"),
        (["model=lipschitz", "model.core.gated=nan"], "model.core.gated=nan: must be true or false"),
        (["task=psmnist", "task.datamodule.permuted=yes"], "task.datamodule.permuted='yes': must be true or false"),
        (["task.monitor.metric=val/acuracy"], "task.monitor.metric='val/acuracy': must be one of val/accuracy"),
        (["model.name=../x"], "model.name='../x': must be a name of letters"),
        (["task.datamodule=3"], "task.datamodule=3: must be what is built from a _target_"),
        (["trainer.max_time=00:10:00"], "trainer.max_time=00:10:00: must be days:hours:minutes:seconds"),
        (["trainer.max_time={minutes: 1}"], "trainer.max_time=.*: must be days:hours:minutes:seconds"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval=0: must be a number above 0"),
        (["trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch=0: must be a number of at least 1"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: must be a number above 0"),
        (["+trainer.logger=false"], "trainer.logger=False: must be left out; use logger="),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run=True: must be False; use debug=default"),
        (["+trainer.overfit_batches=2"], "trainer.overfit_batches=2: must be 0; batches are drawn anew"),
        (["+trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: must be auto; a run takes one device"),
        (
            ["scheduler=plateau", "trainer.check_val_every_n_epoch=2"],
            "scheduler.monitor=val/.*: is there after validations alone; must have .*every_n_epoch=2",
        ),
        (
            ["trainer.limit_val_batches=0", "callbacks=give_up"],
            "callbacks.give_up.metric=val/.*: is never there with trainer.limit_val_batches=0",
        ),
        ([f"seed={2**63}"], r"seed=\d+: must be a whole number in \[0, 2\^63\)"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_legal(compose_config: Compose, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cfg = compose_config(*words)
        check(cfg)
        build(cfg)


CORE = '''
"""A leaky average of the inputs."""
import torch
from torch import nn
from wrnn.cores.base import Core

class LeakyAverage(Core):
    """h = leak h + (1 - leak) V x."""
    def __init__(self, input_size, hidden_size=8):
        super().__init__()
        self.input_map = nn.Linear(input_size, hidden_size)
        self.leak = nn.Parameter(torch.full((hidden_size,), 0.9))
    output_size = property(lambda self: len(self.leak))
    state_size = output_size
    def initial_state(self, batch_size):
        return self.leak.new_zeros(batch_size, len(self.leak))
    def step(self, inputs, state):
        state = self.leak * state + (1 - self.leak) * self.input_map(inputs)
        return state, state
'''
CORE_YAML = """
name: leaky
core: {_target_: my_core.LeakyAverage, hidden_size: 8}
readout: {_target_: wrnn.readouts.LinearReadout}
"""
TASK = '''
"""Say the mean of the stream."""
import torch
from wrnn.tasks.base import SequenceBatch
from wrnn.tasks.synthetic import SyntheticTask

class MeanTask(SyntheticTask):
    """Inputs (B, T, 1), target their mean."""
    def __init__(self, sequence_length, order_seed):
        super().__init__(8, 8, 20, 64, 64, order_seed, 0)
        self.length = sequence_length
    input_size = output_size = property(lambda self: 1)
    sequence_length = property(lambda self: self.length)
    def generate(self, num_sequences, random):
        inputs = torch.rand(num_sequences, self.length, 1, generator=random)
        return SequenceBatch(inputs, inputs.mean(1))
'''
TASK_YAML = """
name: mean
datamodule: {_target_: my_task.MeanTask, sequence_length: 5, order_seed: "${seed}"}
objective: {_target_: wrnn.objectives.RegressLastStep}
monitor: {metric: val/mse, mode: min}
max_steps: 60
"""


def test_a_core_and_a_task_of_ones_own_take_one_python_and_one_yaml_file_each(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wrnn.training import train

    mine = {"my_core.py": CORE, "my_task.py": TASK, "model/leaky.yaml": CORE_YAML, "task/mean.yaml": TASK_YAML}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    results = train(compose_config(search, "model=leaky", "task=mean", "trainer=cpu", "optimizer.lr=0.03"))
    assert results["test/mse"] < 0.05 and results["steps"] == 60
    for choices in (("model=leaky", "task=copy"), ("model=wrnn", "task=mean", "model.core.ring_size=8")):
        parts = build(compose_config(search, *choices))
        assert parts.module(parts.task.make_batch("train", 0, 0).inputs[:2]).isfinite().all()
    with pytest.raises(ConfigError, match="init: model=leaky has its own start only; use init=paper"):
        build(compose_config(search, "model=leaky", "task=mean", "init=shift"))
