"""Compare many runs without W&B: `python src/compare.py runs/my_sweep`; tables, CSV, LaTeX and one page to open."""

from wrnn import cli
from wrnn.compare.command import main

if __name__ == "__main__":
    with cli.endings():
        main()
