"""Files that a crash cannot leave half-written, and locks that end with the process that holds them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from wrnn.errors import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it, whatever happens meanwhile."""
    with write_aside(path) as file:
        file.write(text.encode())


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes into, which takes its name, making the folder, once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sweep_aside(folder: Path) -> None:
    """Remove what `write_aside` could not, because its process was killed. Nobody else may be writing in there."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Raises: ConfigError where what is done within cannot write: `what: cannot be written to (why)`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what}: cannot be written to ({error.strerror})") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file. Raises: ConfigError where it holds anything else."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def folder_lock(folder: Path) -> FileLock:
    """The lock of a run folder or a sweep folder, the same object for the same folder; the kernel frees it at exit.

    A process that holds it may take it again. `acquire(timeout=0)` raises filelock.Timeout where another has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", is_singleton=True, thread_local=False)


def moved(node: Any, old: str, new: str) -> Any:
    """Nested dicts and lists with a folder's new place in every path at or below the old one, in keys too."""
    if isinstance(node, dict):
        return {moved(key, old, new): moved(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [moved(value, old, new) for value in node]
    inside = isinstance(node, str) and (node == old or node.startswith(f"{old}/"))
    return new + node.removeprefix(old) if inside else node
