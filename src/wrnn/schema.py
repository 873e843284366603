"""The shape of the config: a misspelled key or a wrong type fails at composition, before anything is built.

Below `_target_` nodes keys are free here; `wrnn.config.check` holds them against the signature of their target.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

CONF = Path(__file__).parents[2] / "conf"


@dataclass
class BiasStart:
    """Starts of a core's two biases, `zero` or `pytorch`; and of the first where its weights start at random."""

    bias: str = "zero"
    input_bias: str = "zero"
    random_bias: str = "zero"


@dataclass
class ModelConfig:
    """A core with its readout, what of the core is left as it starts, and the starts that its paper uses.

    A start that is null is the framework's default.
    """

    name: str = MISSING
    core: Any = MISSING
    readout: Any = MISSING
    frozen: Any = False  # true, false, recurrence, input
    paper_init: Any = None
    paper_input_init: Any = None
    paper_input_bias: str = "${model.presets.${preset}.input_bias}"
    presets: dict[str, BiasStart] = field(
        default_factory=lambda: {
            "corrected": BiasStart(),
            "paper_text": BiasStart(),
            "released_code": BiasStart("pytorch", "pytorch", "pytorch"),
        }
    )


@dataclass
class MonitorConfig:
    """The metric that selects a model, and for tasks that can be solved, when they are."""

    metric: str = MISSING
    mode: str = MISSING
    select: str = "best"
    solved_metric: str | None = None
    solved_threshold: float | None = None


@dataclass
class TaskConfig:
    """A datamodule, its objective, and the budget of the paper."""

    name: str = MISSING
    datamodule: Any = MISSING
    objective: Any = MISSING
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    max_epochs: int = -1
    max_steps: int = -1
    presets: Any = None


@dataclass
class SchedulerConfig:
    """A learning-rate schedule and when it steps."""

    scheduler: Any = None
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    drop_epochs: list[int] = field(default_factory=list)


@dataclass
class PathsConfig:
    """Where things are read and written; none of it changes a result."""

    data_dir: str = MISSING
    runs_dir: str = MISSING
    run_dir: str | None = None
    ledger_dir: str | None = None


@dataclass
class RootConfig:
    """The root: one entry per group, and a few keys of its own."""

    seed: int = 0
    run_name: str = MISSING
    group: str = MISSING
    preset: str = "corrected"
    recurrence: str = "auto"
    store_every: int | None = None
    matmul_precision: str = "highest"
    cuda_graphs: bool = False
    retry: bool = False
    jobs_per_gpu: int = 1
    ckpt_path: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    images: Any = None
    init: Any = None
    input_init: Any = None
    pairing: Any = None
    optimizer: Any = None
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: Any = None
    callbacks: Any = None
    logger: Any = None
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class EvaluateConfig:
    """`src/evaluate.py`: which run, which checkpoint, where."""

    run: str = MISSING
    checkpoint: str | None = None
    data_dir: str | None = None
    accelerator: str = "auto"


@dataclass
class ReplayConfig:
    """`src/replay.py`: which run, and where its data are now."""

    run: str = MISSING
    data_dir: str | None = None


@dataclass
class DashboardConfig:
    """`src/dashboard.py`: whose runs, which of them, and where the pages go."""

    project: str = "wrnn"
    entity: str | None = None
    group: str | None = None
    tasks: Any = None
    output: str | None = None


def sweep_dir(runs_dir: str, experiment: str | None, sweep: str | None) -> str:
    """The folder of a sweep: named by the experiment and the axes that were chosen, `multirun` without either."""
    name = "_".join(part for part in (experiment, sweep) if part) or "multirun"
    return str(Path(runs_dir, name).absolute())


def jobs_at_once(accelerator: str, jobs_per_gpu: int) -> int:
    """How many jobs this machine takes: `jobs_per_gpu` a GPU, or one a CPU core if none is there or wanted."""
    import joblib  # late: every start of every command passes this file

    from wrnn.sweeps.devices import checked_share, visible_gpus

    gpus = [] if accelerator == "cpu" else visible_gpus()
    return len(gpus) * checked_share(jobs_per_gpu) or joblib.cpu_count()


def gpus_per_job(accelerator: str, jobs_per_gpu: int) -> float:
    """What a job asks Ray for: a GPU or its part of one; 0 where none is there or wanted."""
    from wrnn.sweeps.devices import checked_share, visible_gpus

    return 0 if accelerator == "cpu" or not visible_gpus() else 1 / checked_share(jobs_per_gpu)


def compose_config(*words: str, conf: Path = CONF) -> DictConfig:
    """The config of a command line, for use from Python: `compose_config("model=wrnn", "task=copy", "seed=1")`.

    Args:
        words: as for `src/train.py`, of one run.
        conf: the folder of the configs.

    Raises: Hydra's errors for a group, an option or a key that there is not.
    """
    register()
    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        return compose("config", list(words))


def register() -> None:
    """Make the schemas and the config's own functions known to Hydra."""
    # Cached: jobs, which compose their config anew, take what the controller found.
    OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("gpus_per_job", gpus_per_job, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("jobs_at_once", jobs_at_once, use_cache=True, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=RootConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="replay_schema", node=ReplayConfig)
    store.store(name="dashboard_schema", node=DashboardConfig)
