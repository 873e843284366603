"""Run a finished run again and compare the two to the last bit: `python src/replay.py run=FOLDER [data_dir=FOLDER]`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from wrnn import cli, schema

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="replay")
def main(cfg: DictConfig) -> None:
    """Say what is another machine or version now, train, say whether it came out the same."""
    with cli.endings():
        from wrnn.replay import replay  # late, so that --help does not wait for torch

        replay(Path(cfg.run), cfg.data_dir)


if __name__ == "__main__":
    cli.run(main)
