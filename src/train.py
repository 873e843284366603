"""Train a recurrent core on a task: `python src/train.py model=wrnn task=psmnist`; `--help` lists the choices."""

import hydra
from omegaconf import DictConfig

from wrnn import cli, schema

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Train; returns the monitored metric, which a sweeper can optimise."""
    from wrnn.training import train  # late, so that --help and shell completion do not wait for torch

    return cli.job(lambda cfg: train(cfg).get(cfg.task.monitor.metric), cfg)


if __name__ == "__main__":
    cli.run(main)
