"""Command line: `python src/gpu.py [--minutes M] [--output FOLDER]`: tests, benchmark and an epoch on a GPU."""

from wrnn.gpu import main

if __name__ == "__main__":
    raise SystemExit(main())
