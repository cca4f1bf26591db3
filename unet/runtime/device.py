"""Which device, which precision it gains from, and what to do where its memory ends."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unet.runtime import distributed
from unet.runtime.errors import OutOfMemoryError

# Texts of torch on CUDA, of its CPU allocator, and of NumPy.
_OUT_OF_MEMORY = re.compile("out of memory|allocate memory|not enough memory|Unable to allocate")


def pick_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda or cuda:N into a device that is there; auto prefers CUDA.

    Of several processes on a machine, each takes the CUDA device of its local rank.

    Raises:
        ValueError: if torch does not know the device or sees none such.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.local_world_size() > 1:
        if name == "cuda":
            name = f"cuda:{distributed.local_rank()}"
        elif name.startswith("cuda:"):
            raise ValueError(
                f"train.device: got {name!r} for {distributed.local_world_size()} processes, "
                "expected cuda, of which each takes one, or cpu"
            )
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"train.device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"train.device: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA "
            "device(s); take auto or cpu"
        )
    if device.index is not None:
        torch.cuda.set_device(device)  # or helpers of torch would open the first one as well
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Turn a precision into the dtype to compute in; auto takes what the device gains from.

    On CPUs that is float32: bfloat16 is slower on most, and even where there are instructions for
    it, it gains with large layers only (a step of configs/isbi2012.yaml is 2.3 times as fast).
    """
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let torch refuse whatever changes from run to run, as long as the block lasts."""
    if not enabled:  # setting it imports much, which an interruption must not do once more
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA starts
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; of torch's, only the text does."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Add advice to the error if memory runs out; of nested blocks, the innermost gives it.

    Raises:
        OutOfMemoryError: with the failed allocation and the advice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        asked = (str(error).strip() or "no details").splitlines()[-1][:200]
        raise OutOfMemoryError(f"out of memory ({asked}); {advice}") from error
