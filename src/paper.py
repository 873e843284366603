"""The paper's tables and figures beside ours: `python src/paper.py write`; `add FOLDER` puts runs into the ledger."""

from pathlib import Path

from wrnn import cli
from wrnn.paper.command import main

if __name__ == "__main__":
    with cli.endings():
        main(Path(__file__).resolve().parents[1])
