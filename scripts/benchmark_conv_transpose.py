"""Compare the speed of our transposed convolution with torch's.

The matrix product that both need shows the limit. The levels are those of the standard U-Net's
decoder. All candidates run in turn in one process, so that a noisy machine slows all of them down
equally. Compare the columns of one row, not rows of two runs.
"""

import argparse
import ctypes
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unet import conv_transpose2d

# Batch, channels in, channels out, height and width; the kernel is 2 x 2 with stride 2.
LEVELS = [
    (1, 1024, 512, 32),
    (1, 512, 256, 64),
    (1, 256, 128, 128),
    (1, 128, 64, 256),
    (4, 64, 32, 128),
]
QUICK_LEVELS = [(1, 16, 8, 16)]


def matrix_product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    """Compute only the product over the pixels, without the bias and without placing blocks."""
    return input.permute(0, 2, 3, 1).flatten(0, 2) @ weight.permute(0, 2, 3, 1).flatten(1)


def ours(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Call our function."""
    return conv_transpose2d(input, weight, bias, stride=2)


def torchs(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Call torch's function."""
    return F.conv_transpose2d(input, weight, bias, stride=2)


@dataclass
class Candidate:
    """An implementation with tensors of one memory format."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    leaves: list[Tensor]
    output_gradient: Tensor
    seconds: list[float] = field(default_factory=list)
    peak: float = math.nan

    def forward(self) -> None:
        """Run one forward pass, as in prediction."""
        with torch.inference_mode():
            self.function(*self.leaves)

    def both(self) -> None:
        """Run one forward and backward pass, as in training."""
        leaves = [leaf.detach().requires_grad_() for leaf in self.leaves]
        self.function(*leaves).backward(self.output_gradient)

    def time(self, run: Callable[[], None], device: str) -> None:
        """Run once and record the seconds."""
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        """Median milliseconds."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def shown(self) -> str:
        """Minimum and median milliseconds."""
        return f"{1e3 * min(self.seconds):8.2f} {self.median:8.2f}"


def synchronize(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], None], device: str) -> float:
    """Return the MiB that a run needs at its peak; NaN if the system cannot say."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != "linux":
        return math.nan
    run()  # libraries allocate their own buffers once
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """Return the MiB of this process, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10


def candidates(level: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> dict:
    """Make ours, torch's in both memory formats, and the matrix product."""
    n, channels, out_channels, size = level
    torch.manual_seed(0)
    x = torch.randn(n, channels, size, size, device=device, dtype=dtype)
    weight = torch.randn(channels, out_channels, 2, 2, device=device, dtype=dtype) / channels**0.5
    bias = torch.randn(out_channels, device=device, dtype=dtype)
    gradient = torch.randn(n, out_channels, 2 * size, 2 * size, device=device, dtype=dtype)
    last = torch.channels_last
    x_last, gradient_last = x.to(memory_format=last), gradient.to(memory_format=last)
    result = {
        "ours": Candidate(ours, [x_last, weight, bias], gradient_last),
        "torch": Candidate(torchs, [x, weight, bias], gradient),
        "torch, channels_last": Candidate(torchs, [x_last, weight, bias], gradient_last),
        "product": Candidate(
            matrix_product,
            [x_last, weight, bias],
            gradient.reshape(n * size * size, 4 * out_channels),
        ),
    }
    expected = torchs(x, weight, bias)
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(ours(x_last, weight, bias), expected, atol=tolerance, rtol=tolerance)
    return result


def main() -> None:
    """Print a table and the geometric means of the speeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="counted runs (default: 15)")
    parser.add_argument("--quick", action="store_true", help="only test that the script runs")
    arguments = parser.parse_args()
    levels, repeats = LEVELS, arguments.repeats
    if arguments.quick:
        levels, repeats = QUICK_LEVELS, 1
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds: min, median"
    )
    print(f"{'':43}{'ours':>17} {'torch (better format)':>22} {'matrix product':>17}  speed  MiB")
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            speeds: dict[str, list[float]] = {"forward": [], "both": []}
            for level in levels:
                for passes, ratios in speeds.items():
                    row = candidates(level, device, dtype)
                    runs = {name: getattr(one, passes) for name, one in row.items()}
                    for name, one in row.items():
                        one.peak = peak_memory(runs[name], device)
                    for _ in range(repeats):
                        # In random order: the previous run affects the CPU cache and the heap.
                        for name in random.sample(list(row), len(row)):
                            row[name].time(runs[name], device)
                    theirs = min(
                        row["torch"], row["torch, channels_last"], key=lambda one: one.median
                    )
                    ratios.append(theirs.median / row["ours"].median)
                    n, channels, out_channels, size = level
                    print(
                        f"{device} {str(dtype)[6:]:8} {channels:4}->{out_channels:3} at {size:3}, "
                        f"batch {n} {'forward' if passes == 'forward' else '+backward':9} "
                        f"{row['ours'].shown} {theirs.shown:>22} {row['product'].shown}  "
                        f"{ratios[-1]:5.2f}  {row['ours'].peak:.0f} against {theirs.peak:.0f}",
                        flush=True,
                    )
            for passes, ratios in speeds.items():
                mean = statistics.geometric_mean(ratios)
                name = "forward" if passes == "forward" else "forward and backward"
                print(
                    f"{device} {str(dtype)[6:]} {name}: {mean:.2f} times as fast as torch's in "
                    f"the geometric mean, {min(ratios):.2f} at least"
                )


if __name__ == "__main__":
    main()
