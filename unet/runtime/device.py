"""Choice of device and dtype, deterministic algorithms, errors when memory runs out."""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from unet.runtime import distributed
from unet.runtime.errors import OutOfMemoryError, is_out_of_memory
from unet.runtime.text import plural


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def pick_device(name: str) -> torch.device:
    """Return the device for auto, cpu, cuda, cuda:N or mps; auto prefers CUDA, then MPS.

    With several processes on a machine, each gets the CUDA device of its local rank.

    Raises:
        ValueError: if torch does not know or find the device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and has_mps and distributed.local_world_size() == 1:
            name = "mps"
    if (num_processes := distributed.local_world_size()) > 1:
        if name == "cuda":
            name = f"cuda:{distributed.local_rank()}"
        elif name.startswith("cuda:"):
            raise ValueError(
                f"train.device: got {name!r} for {num_processes} processes, expected cuda, which "
                "gives each process a device, or cpu"
            )
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"train.device: got {name!r}, expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and (not has_mps or distributed.local_world_size() > 1):
        raise ValueError(
            "train.device: got mps, which needs a Mac with an Apple GPU and one process; take "
            "auto or cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"train.device: got {name!r}, but torch finds "
            f"{plural(torch.cuda.device_count(), 'CUDA device')}; take auto or cpu"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # torch would also open the first device otherwise
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; do nothing without glibc.

    By default it returns large blocks to the system, which then fills them with zeros, page by
    page, each time they are allocated again: 15 to 25 % of the time of a training step on a CPU.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, -1)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype for a precision; auto takes a 16-bit dtype on CUDA and float32 elsewhere.

    Raises:
        ValueError: if the precision is a 16-bit one on MPS, where it is not tested.
    """
    if device.type == "mps" and precision not in ("auto", "float32"):
        raise ValueError(
            f"train.precision: got {precision} with train.device mps, expected float32 or auto"
        )
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def time_dtypes(
    run: Callable[[torch.dtype, int], object], other: torch.dtype, largest: int
) -> dict[torch.dtype, float] | None:
    """Time the same computation in float32 and in another dtype, in about a second.

    Args:
        run: computes in a dtype, on images of `side` x `side` pixels.
        other: is tried once only if it is more than twice as slow.
        largest: the side of the images that are meant; smaller ones are timed if these are slow.

    Returns:
        Seconds of each dtype, or None if the computation is so short that they do not matter.
    """

    def seconds(dtype: torch.dtype, side: int) -> float:
        start = time.perf_counter()
        run(dtype, side)
        return time.perf_counter() - start

    run(torch.float32, 64)  # the first time is slower
    quick = seconds(torch.float32, 64)
    if quick * (largest / 64) ** 2 < 0.02:
        return None
    side = max(64, min(largest, int(64 * math.sqrt(0.2 / quick)) // 32 * 32))
    times = {torch.float32: seconds(torch.float32, side)}
    if seconds(other, 64) > 10 * quick:  # emulated
        return times | {other: 10 * times[torch.float32]}
    times[other] = seconds(other, side)
    if times[other] < 2 * times[torch.float32]:
        for dtype in times:  # the first one had to prepare kernels for this size
            times[dtype] = min(times[dtype], seconds(dtype, side), seconds(dtype, side))
    return times


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let torch raise an error in the block if an operation is not deterministic."""
    if not enabled:  # the setting imports much, and an interrupted import cannot be repeated
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Raise `OutOfMemoryError` with advice if memory runs out; the innermost advice wins."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        details = (str(error).strip() or "no details").splitlines()[-1][:200]
        raise OutOfMemoryError(f"out of memory ({details}); {advice}") from error
