"""What the commands share: errors as one line, and exit codes.

0 done, 1 a bug (with its traceback), 2 something the user can mend, 3 diverged, 4 out of memory, 5 a sweep in which not
every run finished, 6 a replay that differs, 130 Ctrl-C, 143 SIGTERM.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wrnn.config import key_to_set, nearest
from wrnn.errors import ConfigError, DivergedError, Interrupted, OutOfMemory, ReplayDiffers, SweepIncomplete
from wrnn.schema import CONF


def run(main: Callable[[], None]) -> None:
    """Call a Hydra main: what it raises becomes one line on stderr and an exit code; a bug keeps its traceback."""
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # argparse wants them first
    full = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra raise instead of printing several lines
    with endings():
        try:
            main()
        except (HydraException, OmegaConfBaseException) as error:
            if full:
                raise
            meant = _about_key(str(error))
            said = _flat(error, *(["To append to your"] if meant else []))
            _leave(said.rstrip(".") + meant + _lists_in(str(error)) + _about_words(said), ConfigError.exit_code)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            if full:
                raise
            _leave(f"a config file cannot be read: {error}", ConfigError.exit_code)
        except ValueError as error:  # Hydra's, of its own kind nowhere
            if full or not str(error).startswith("Config group override"):
                raise
            words = [word for word in sys.argv[1:] if re.match(r"[\w/]+=", word)]
            _leave(f"{' '.join(words)}: a group takes the name of one of its options", ConfigError.exit_code)


@contextmanager
def endings() -> Iterator[None]:
    """Turn the expected ways to end into one line on stderr and an exit code, SIGTERM among them."""
    signal.signal(signal.SIGTERM, _stop)  # before and after training; `ResumePoint` takes over in between
    sys.unraisablehook = _unraisable
    try:
        yield
    except Interrupted as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # clusters send it more than once
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("stopped by SIGINT", 130)
    except (ConfigError, DivergedError, OutOfMemory, SweepIncomplete, ReplayDiffers) as error:
        _leave(str(error), error.exit_code)
    except MemoryError as error:  # outside of training, which says more
        _leave(f"out of memory: {error}".rstrip(": "), OutOfMemory.exit_code)


def _unraisable(what: Any) -> None:
    """Compiled code that gets no memory within a callback cannot say so there; it fails, and that is what is told."""
    if not isinstance(what.exc_value, MemoryError):
        sys.__unraisablehook__(what)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, f"stopped by {signal.Signals(number).name}")


_ELSEWHERE = "; it is read from "


def _flat(error: BaseException, *also_unwanted: str) -> str:
    """Hydra's message and its cause on one line, with the key that it is about, without the search path."""
    parts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for part in parts for line in part.splitlines()]
    unwanted = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "Config search path",
        "provider=",
        "Set the env",
        "See ",
        *also_unwanted,
    )
    keys = dict.fromkeys(line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: "))
    message = " ".join(line for line in lines if line and not line.startswith(unwanted))
    message = message.split(" To override a value use ")[0]  # advice for files, where words are meant
    return message if all(key in message for key in keys) else f"{', '.join(keys)}: {message}"


def _about_words(message: str) -> str:
    """What to write where Hydra's grammar, or its list of defaults, does not take a word."""
    if re.search("LexerNoViableAlt|mismatched input|no viable alternative|extraneous input", message):
        return "; a value with ~, =, spaces or letters beyond a to z wants quotes within quotes: 'run=\"a=b\"'"
    added = [word for word in sys.argv[1:] if re.match(r"\+[\w/]+=", word)]
    if message.startswith("Multiple values for") and added:
        return f"; write {' '.join(word[1:] for word in added)}, without +"
    return ""


def _about_key(message: str) -> str:
    """What a key was meant to be that Hydra does not take: the one that it is read from, or one like it. Or nothing."""
    found = re.search(r"(?:Could not override|delete from config\.|full_key:)\s+'?([\w.]+)", message)
    if found is None:
        return ""
    command = Path(sys.argv[0]).stem
    root = command if command in ("evaluate", "replay", "dashboard") else "config"
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} if root == "config" else set()
    options = [word for word in sys.argv[1:] if word.split("=")[0] in groups]
    choices = [word for word in options if (CONF / f"{word.replace('=', '/')}.yaml").exists()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(root, choices)
        source = key_to_set(cfg, found[1])
        path, node = "", cfg
        for name in source.split("."):
            legal = [*map(str, node), *([] if path else groups)] if isinstance(node, DictConfig) else []
            if name not in legal and root != "config":
                return nearest(name, legal) or f"; there are: {', '.join(map(str, cfg))}"
            if name not in legal:
                alike, further_down = nearest(name, legal, path), _same_name(cfg, source)
                return (alike or further_down) if path else (further_down or alike)
            path, node = f"{path}{name}.", node.get(name)
    except (HydraException, OmegaConfBaseException):
        return ""
    is_sure = len(choices) == len(options)  # or there are several, or some of the user's own
    return f"{_ELSEWHERE}{source}: set that" if is_sure and source != found[1] else ""


def _same_name(cfg: DictConfig, word: str) -> str:
    """`; did you mean ...`: the keys anywhere that have the name of this one, as they are set; or nothing."""
    plain, name = OmegaConf.to_container(cfg, resolve=False), word.split(".")[-1]
    paths = [
        path for path in _paths(plain, "") if path.split(".")[-1] == name and not re.search("presets|pairing", path)
    ]
    found = dict.fromkeys(key_to_set(cfg, path) for path in paths)
    return f"; did you mean {' or '.join(found)}" if found else ""


def _paths(node: Any, path: str) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        below = f"{path}.{key}" if path else str(key)
        yield below
        yield from _paths(value, below)


def _lists_in(message: str) -> str:
    """The lists in a file that Hydra could not merge: one of them stands where a mapping belongs."""
    found = re.search(r"In '([\w./-]+)': .*(?:Cannot merge (?:Dict|List)Config with|list is not a)", message, re.DOTALL)
    folders = [*re.findall(r"file://([^\],]+)", " ".join(sys.argv[1:])), str(CONF)]
    paths = [Path(folder, f"{found[1]}.yaml") for folder in folders] if found else []
    for path in paths:
        if path.is_file():
            lists = _lists(OmegaConf.to_container(OmegaConf.load(path)), "")
            return f"; a list where a mapping belongs: {' or '.join(lists)}" if lists else ""
    return ""


def _lists(node: Any, path: str) -> list[str]:
    if isinstance(node, list):
        return [path]
    children = node.items() if isinstance(node, dict) else ()
    return [found for key, child in children for found in _lists(child, f"{path}.{key}" if path else str(key))]


def _leave(message: str, code: int) -> None:
    print(message if code > 128 else f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
