"""Train a recurrent core on a task: `python src/train.py model=wrnn task=psmnist`; `--help` lists the choices."""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wrnn import cli, schema

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Train here, or as a job of a sweep in a process of its own; a job returns the metric that a search optimises."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from wrnn.sweeps.job import job

        return job(cfg)
    with cli.endings():
        from wrnn.training import train  # late, so that --help and shell completion do not wait for torch

        train(cfg)
    return None


if __name__ == "__main__":
    cli.run(main)
