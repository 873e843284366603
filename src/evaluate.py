"""Test a finished run again: `python src/evaluate.py run=FOLDER [checkpoint=best|last] [data_dir=FOLDER]`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from wrnn import cli, schema

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Print the test metrics."""
    with cli.endings():
        from wrnn.training import evaluate  # late, so that --help does not wait for torch

        evaluate(Path(cfg.run), cfg.checkpoint, cfg.data_dir, cfg.accelerator)


if __name__ == "__main__":
    cli.run(main)
