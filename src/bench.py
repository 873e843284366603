"""Compare the released per-step loop with this package, e.g. `python src/bench.py --task psmnist --threads 2`."""

from wrnn.benchmark import main

if __name__ == "__main__":
    raise SystemExit(any(row.error for row in main()))
