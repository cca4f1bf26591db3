import platform
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from unet.runtime.device import memory_advice, pick_device, pick_dtype

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@needs_no_cuda
def test_auto_is_the_cpu_and_float32_without_cuda() -> None:
    assert pick_device("auto") == torch.device("cpu")
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


@needs_no_cuda
def test_a_missing_device_raises_an_error() -> None:
    with pytest.raises(ValueError, match="got 'cuda', but torch finds 0 CUDA device"):
        pick_device("cuda")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept with glibc alone")
def test_memory_of_freed_tensors_on_a_cpu_is_used_again() -> None:
    # In a process of its own, whose memory no other test has used.
    program = """
import resource, torch
from unet.runtime.device import pick_device
pick_device("cpu")
def count_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40_000_000)  # 39,063 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([count_pages() for _ in range(10)][-1])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(result.stdout) < 1_000, result.stderr


def test_an_unknown_device_raises_an_error() -> None:
    for name in ("gpu", "meta"):
        with pytest.raises(
            ValueError, match=f"got '{name}', expected auto, cpu, cuda, cuda:N or mps"
        ):
            pick_device(name)


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_the_innermost_advice_is_given_when_memory_runs_out(
    allocate: Callable[[int], object],
) -> None:
    expected = r"^out of memory \(.*allocate.*\); take less$"
    with (
        pytest.raises(MemoryError, match=expected),
        memory_advice("wait"),
        memory_advice("take less"),
    ):
        allocate(2**55)
    with pytest.raises(RuntimeError, match="other"), memory_advice("take less"):
        raise RuntimeError("other")


def test_an_explicit_precision_is_used() -> None:
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_auto_takes_mps_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got mps, which needs a Mac with an Apple GPU"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("mps") == torch.device("mps")
    assert pick_dtype("auto", torch.device("mps")) == torch.float32
    for precision in ("bfloat16", "float16"):
        with pytest.raises(ValueError, match=f"got {precision} with train.device mps, expected fl"):
            pick_dtype(precision, torch.device("mps"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="and one process; take auto or cpu"):
        pick_device("mps")
