"""kernel.cpp: compiled at first use for this very machine, kept in a cache, and called through plain pointers.

The compiler is $CXX, g++, clang++ or c++, with $WRNN_CXXFLAGS after our own flags ($CXXFLAGS is left alone:
environments set it for older CPUs). The cache folder is $WRNN_CACHE_DIR, else `wrnn` in $XDG_CACHE_HOME or ~/.cache.
A file's name holds a hash of all that its code depends on (source, compiler, flags, CPU) and one of its content, so a
file from another machine, an older source or a broken disk is never loaded. Files are written aside and renamed:
processes may build at once.

B batch, T time, I input features, C channels, N neurons per ring, O outputs of a readout.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from wrnn.recurrence.buffers import borrow
from wrnn.recurrence.notices import say_once

DTYPES = {torch.float32: "float", torch.float64: "double"}
SOURCE = Path(__file__).with_name("kernel.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
_NONLINEARITIES = ("identity", "relu", "tanh")
_SIZES = "batch steps channels neurons taps inputs outputs every shared nonlinearity threads"
_ARRAYS = (
    "x drive input_weight bias kernel state readout kept last read grad_states grad_last grad_read "
    "grad_x grad_drive grad_input_weight grad_bias grad_kernel grad_state grad_readout"
)


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES.split()),
        *((name, ctypes.c_void_p) for name in _ARRAYS.split()),
    ]


def kept_numel(inputs: Tensor, bias: Tensor, kernel: Tensor, state: Tensor, every: int) -> int:
    """How many numbers the backward needs."""
    return inputs.shape[1] // every * state.numel()


def forward(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    readout: Tensor | None,
    nonlinearity: str,
    wants: str,
    every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.ring`."""
    batch, steps = state.shape[0], inputs.shape[1]
    last = state.new_empty(state.shape)
    kept, every_step = state.new_empty(0), state.new_empty(0)
    if wants == "states":
        kept = every_step = borrow(state, batch, steps, *bias.shape)
        every = 1
    elif every:
        kept = borrow(state, kept_numel(inputs, bias, kernel, state, every))
    read = None
    if readout is not None:
        read = every_step = state.new_empty(batch, steps, readout.shape[0])
    _run(
        "wrnn_forward",
        (inputs, input_weight, bias, kernel, state, readout),
        nonlinearity,
        max(every, 1),
        kept=kept if kept.numel() else None,
        last=last,
        read=read,
    )
    return last, every_step, state.new_empty(0) if wants == "states" else kept


def backward(
    grad_last: Tensor | None,
    grad_every_step: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    kept: Tensor,
    nonlinearity: str,
    wants: str,
    every: int,
    needed: list[bool],
) -> list[Tensor | None]:
    """See `ops.ring_backward`."""
    found = [
        tensor.new_empty(tensor.shape) if tensor is not None and need else None
        for tensor, need in zip(tensors, needed, strict=True)
    ]
    readout = found[5]
    if readout is not None and grad_every_step is None:  # the loss saw the last state alone
        readout.zero_()
        found[5] = None
    inputs = "x" if tensors[1] is not None else "drive"
    names = (inputs, "input_weight", "bias", "kernel", "state", "readout")
    _run(
        "wrnn_backward",
        tensors,
        nonlinearity,
        every,
        kept=kept,
        grad_last=grad_last,
        grad_states=grad_every_step if wants == "states" else None,
        grad_read=grad_every_step if wants == "readout" else None,
        **{f"grad_{name}": gradient for name, gradient in zip(names, found, strict=True)},
    )
    return [*found[:5], readout]


def _run(
    function: str, tensors: tuple[Tensor | None, ...], nonlinearity: str, every: int, **arrays: Tensor | None
) -> None:
    inputs, input_weight, bias, kernel, state, readout = tensors
    assert inputs is not None and bias is not None and kernel is not None and state is not None
    features = inputs.shape[-1] if input_weight is not None else 0
    call = _Call(
        state.shape[0],
        inputs.shape[1],
        *bias.shape,
        kernel.shape[-1],
        features,
        0 if readout is None else readout.shape[0],
        every,
        int(inputs.shape[0] < state.shape[0]),
        _NONLINEARITIES.index(nonlinearity),
        torch.get_num_threads(),
    )
    alive = []  # copies made here must outlive the call
    arrays |= {"x" if input_weight is not None else "drive": inputs, "input_weight": input_weight}
    arrays |= {"bias": bias, "kernel": kernel, "state": state, "readout": readout}
    for name, tensor in arrays.items():
        if tensor is not None and tensor.numel():
            alive.append(tensor.contiguous())
            setattr(call, name, alive[-1].data_ptr())
    if getattr(_library(state.dtype), function)(ctypes.byref(call)) != 0:
        raise MemoryError(f"recurrence=cpp: no memory for {state.shape[0]} sequences on {call.threads} threads")


# -------------------------------------------------------------------------------------------------------------- build


class BuildError(Exception):
    """Why there is no compiled kernel, in one line."""


def misfit(like: Tensor) -> str | None:
    """Return why the kernel is not for tensors like this one, or None."""
    if like.device.type == "cpu" and like.dtype in DTYPES:
        return None
    return f"runs float32 or float64 on the CPU, not {like.dtype} on {like.device.type}"


def problem(bias: Tensor, kernel: Tensor) -> str | None:
    """Return why the kernel cannot be had here, or None; compiles it if need be."""
    try:
        _library(bias.dtype)
    except BuildError as error:
        return str(error)
    return None


def describe(like: Tensor) -> str:
    """What the kernel was compiled for."""
    return f"vectors of {_library(like.dtype).wrnn_vector_bits()} bits"


_LIBRARIES: dict[torch.dtype, ctypes.CDLL | BuildError] = {}


def _library(dtype: torch.dtype) -> ctypes.CDLL:
    found = _LIBRARIES.get(dtype)
    if found is None:
        try:
            found = _load_or_build(DTYPES[dtype])
        except BuildError as error:
            found = error
        _LIBRARIES[dtype] = found
    if isinstance(found, BuildError):
        raise found
    return found


def _load_or_build(real: str) -> ctypes.CDLL:
    compiler, version = _compiler()
    more = os.environ.get("WRNN_CXXFLAGS", "").split()
    command = [compiler, *FLAGS, *more, f"-DREAL={real}", str(SOURCE), *_openmp()]
    facts = [SOURCE.read_bytes().hex(), version, *command[1:], _cpu()]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    folder = cache_folder()
    for path in sorted(folder.glob(f"kernel-{key}-*.so")) if folder.is_dir() else []:
        if _digest(path) == path.stem.rsplit("-", 1)[-1]:
            return _load(path)
        say_once(f"recurrence: {path} is damaged; compiling anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            return _load(_keep(_compile(command, Path(aside)), folder, key))
    except OSError as error:
        say_once(f"recurrence: {folder} cannot be written ({error.strerror}); compiling for this run alone")
    with tempfile.TemporaryDirectory() as aside:
        return _load(_compile(command, Path(aside)))


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if named := os.environ.get("WRNN_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wrnn"


def _compiler() -> tuple[str, str]:
    """Path and version of the C++ compiler."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if path := shutil.which(name):
            asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            return path, asked.stdout
    raise BuildError("no C++ compiler is on the PATH (g++, clang++ or $CXX)")


def _compile(command: list[str], folder: Path) -> Path:
    path = folder / "kernel.so"
    say_once("recurrence: compiling the kernel, once (seconds)")
    result = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=False)
    if result.returncode != 0 or not path.is_file():
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else result.returncode}")
    return path


def _keep(path: Path, folder: Path, key: str) -> Path:
    kept = folder / f"kernel-{key}-{_digest(path)}.so"
    os.replace(path, kept)
    return kept


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        library.wrnn_call_bytes.restype = ctypes.c_int64
        agrees = library.wrnn_call_bytes() == ctypes.sizeof(_Call)
    except (OSError, AttributeError) as error:
        raise BuildError(f"the compiled kernel does not load: {error}") from error
    if not agrees:
        raise BuildError("kernel.cpp and cpp.py differ in what they pass")
    for name in ("wrnn_forward", "wrnn_backward"):
        getattr(library, name).argtypes = [ctypes.POINTER(_Call)]
        getattr(library, name).restype = ctypes.c_int64
    return library


def _openmp() -> list[str]:
    """The OpenMP library that torch has loaded, so that both share one set of threads."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    found = re.search(r"(/\S*/libgomp[^/\s]*\.so[^/\s]*)", mapped)
    return [found[1], "-Wl,--as-needed"] if found else []


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = [line for line in lines if line.startswith(("flags", "Features", "model name", "cpu family", "model\t"))]
    return "\n".join([platform.machine(), *dict.fromkeys(facts)])
