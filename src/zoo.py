"""Every core on the adding and the copy task for a minute each, as one table: `python src/zoo.py`."""

from wrnn import cli
from wrnn.zoo import main

if __name__ == "__main__":
    with cli.endings():
        main()
