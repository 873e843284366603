"""Compare the released per-step loop with this package, e.g. `python src/bench.py --task psmnist --threads 2`."""

import sys

from wrnn import cli


def main() -> None:
    """Measure; exit code 1 if a variant could not be timed."""
    with cli.endings():
        from wrnn.benchmark import main  # late, so that Ctrl-C while torch is read is no traceback

        sys.exit(any(row.error for row in main()))


if __name__ == "__main__":
    cli.run(main)
