"""Checks of what a user can get wrong. Each raises one line that names the key, the value and the legal range."""

import math
from collections.abc import Collection


def whole_number(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` if it is an int of at least `minimum`; a bool or a float is none. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least {minimum}")
    return value


def seed(name: str, value: object, or_null: bool = False) -> None:
    """Accept an int in [0, 2^63), or None where that means another seed. Raises: ValueError."""
    if value is None and or_null:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name}={value!r}: must be a whole number in [0, 2^63){', or null' if or_null else ''}")


def odd_kernel(kernel_size: int, limit: int, of: str) -> int:
    """Return `kernel_size` if it is odd and at most `limit`, the size of what it lies on. Raises: ValueError."""
    if whole_number("model.core.kernel_size", kernel_size) % 2 == 0 or kernel_size > limit:
        raise ValueError(f"model.core.kernel_size={kernel_size}: must be odd and at most {of}={limit}")
    return kernel_size


def one_of(name: str, value: str, legal: Collection[str]) -> str:
    """Return `value` if it is among `legal`. Raises: ValueError."""
    if value not in list(legal):  # a list or a mapping has no hash
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(legal)}")
    return value


def within(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if it is a number in [low, high]. Raises: ValueError."""
    if not _number(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: must be a number in [{low}, {high}]")
    return value


def positive(name: str, value: float, at_most: float = float("inf")) -> float:
    """Return `value` if it is a finite number above 0 and at most `at_most`. Raises: ValueError."""
    if not _number(value) or not 0 < value <= at_most:
        limit = "" if at_most == float("inf") else f" and at most {at_most:g}"
        raise ValueError(f"{name}={value!r}: must be a number above 0{limit}")
    return value


def not_negative(name: str, value: float) -> float:
    """Return `value` if it is a finite number of at least 0. Raises: ValueError."""
    if not _number(value) or value < 0:
        raise ValueError(f"{name}={value!r}: must be a number of at least 0")
    return value


def share(name: str, value: float) -> float:
    """Return `value` if it is a number in [0, 1). Raises: ValueError."""
    if not _number(value) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: must be a number in [0, 1)")
    return value


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
