"""Time and memory of the benchmarks in this folder."""

import argparse
import ctypes
import math
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass
class Times:
    """The seconds of a candidate in each round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def ratios(self, other: "Times") -> list[float]:
        """Return the time of each round divided by the other's time in the same round."""
        return [one / two for one, two in zip(self.seconds, other.seconds, strict=True)]

    def overhead(self, other: "Times") -> str:
        """Format how much more time this takes than the other: median and middle half."""
        percents = [100 * (ratio - 1) for ratio in self.ratios(other)]
        low, high = np.percentile(percents, (25, 75))
        return f"{statistics.median(percents):+.1f} % (middle half {low:+.1f} to {high:+.1f})"


def time_in_turns(
    candidates: Mapping[Key, Callable[[], object]],
    rounds: int,
    device: torch.device,
    repeats: int = 1,
) -> dict[Key, Times]:
    """Run every candidate `repeats` times in every round; return the seconds of one repeat.

    The order is random, because the previous candidate affects the CPU cache and the heap.
    """
    times = {key: Times() for key in candidates}
    for _ in range(rounds):
        for key in random.sample(list(candidates), len(candidates)):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats):
                candidates[key]()
            synchronize(device)
            times[key].seconds.append((time.perf_counter() - start) / repeats)
    return times


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MemoryMeter:
    """Measures the memory of this process beyond what it has now, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset_peak()
        self.before = self._read("VmRSS", torch.cuda.memory_allocated)

    def reset_peak(self) -> None:
        """Measure the peak from here on."""
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """Return the peak; NaN if the system does not report it."""
        synchronize(self.device)
        return self._read("VmHWM", torch.cuda.max_memory_allocated) - self.before

    def _read(self, name: str, read_cuda: Callable[[], int]) -> float:
        if self.device.type == "cuda":
            return read_cuda() / 2**20
        if sys.platform != "linux":
            return math.nan
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) / 2**10


def run_in_new_process(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function of a script in a process in which nothing has used memory before."""
    # A server imports torch once, and each new process is a copy of the server.
    with_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if with_server else "spawn")
    if with_server:
        # Optimizers import torch._dynamo when they are made, which takes seconds.
        context.set_forkserver_preload(["torch._dynamo", "unet.build"])
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *args).result()


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only test that the script runs")
    return parser


def list_devices() -> list[str]:
    """Return cpu, and cuda if there is a GPU."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
