"""Lines for the user about how a recurrence is computed."""

from functools import cache


@cache
def say_once(line: str) -> None:
    """Print a line, and never twice."""
    print(line, flush=True)
