"""Compare the speed of our transposed convolution with torch's.

The matrix product that both need shows the limit. The levels are those of the standard U-Net's
decoder. All candidates run in turn in one process, so that a noisy machine slows all of them down
equally. Compare the columns of one row, not rows of two runs.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from benchmarking import MemoryMeter, Times, list_devices, make_parser, time_in_turns
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
PASSES = {"forward": "forward", "+backward": "forward and backward"}


def matrix_product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    """Compute only the product over the pixels, without the bias and without placing blocks."""
    return input.permute(0, 2, 3, 1).flatten(0, 2) @ weight.permute(0, 2, 3, 1).flatten(1)


def run_forward(function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor) -> None:  # noqa: ARG001
    """Run one forward pass, as in prediction."""
    with torch.inference_mode():
        function(*inputs)


def run_both(function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor) -> None:
    """Run one forward and backward pass, as in training."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    function(*leaves).backward(gradient)


def make_candidates(
    level: tuple[int, int, int, int], passes: str, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """Make ours, torch's in both memory formats, and the matrix product."""
    n, channels, out_channels, size = level
    torch.manual_seed(0)
    x = torch.randn(n, channels, size, size, device=device, dtype=dtype)
    weight = torch.randn(channels, out_channels, 2, 2, device=device, dtype=dtype) / channels**0.5
    bias = torch.randn(out_channels, device=device, dtype=dtype)
    gradient = torch.randn(n, out_channels, 2 * size, 2 * size, device=device, dtype=dtype)
    x_last, gradient_last = (one.to(memory_format=torch.channels_last) for one in (x, gradient))
    ours, torchs = (partial(one, stride=2) for one in (conv_transpose2d, F.conv_transpose2d))
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(
        ours(x_last, weight, bias), torchs(x, weight, bias), atol=tolerance, rtol=tolerance
    )
    run = run_forward if passes == "forward" else run_both
    rows = gradient.reshape(n * size * size, 4 * out_channels)
    return {
        "ours": partial(run, ours, [x_last, weight, bias], gradient_last),
        "torch": partial(run, torchs, [x, weight, bias], gradient),
        "torch, channels_last": partial(run, torchs, [x_last, weight, bias], gradient_last),
        "product": partial(run, matrix_product, [x_last, weight, bias], rows),
    }


def peak_memory(run: Callable[[], None], device: torch.device) -> float:
    """Return the MiB that a run needs at its peak; NaN if the system does not report it."""
    run()  # libraries allocate their own buffers once
    meter = MemoryMeter(device)
    run()
    return meter.peak()


def format_times(times: Times) -> str:
    """Format minimum and median milliseconds."""
    return f"{1e3 * min(times.seconds):8.2f} {1e3 * times.median:8.2f}"


def compare(
    level: tuple[int, int, int, int],
    passes: str,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
) -> float:
    """Print a row; return torch's time divided by ours."""
    candidates = make_candidates(level, passes, device, dtype)
    peaks = {name: peak_memory(run, device) for name, run in candidates.items()}
    times = time_in_turns(candidates, rounds, device)
    better = min(("torch", "torch, channels_last"), key=lambda name: times[name].median)
    speed = times[better].median / times["ours"].median
    n, channels, out_channels, size = level
    print(
        f"{device.type} {str(dtype)[6:]:8} {channels:4}->{out_channels:3} at {size:3}, "
        f"batch {n} {passes:9} {format_times(times['ours'])} {format_times(times[better]):>22} "
        f"{format_times(times['product'])}  {speed:5.2f}  {peaks['ours']:.0f} against "
        f"{peaks[better]:.0f}",
        flush=True,
    )
    return speed


def main(argv: list[str] | None = None) -> int:
    """Print a table and the geometric means of the speeds."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="counted runs (default: 15)")
    arguments = parser.parse_args(argv)
    levels, rounds = (QUICK_LEVELS, 1) if arguments.quick else (LEVELS, arguments.repeats)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds: min, median"
    )
    print(f"{'':43}{'ours':>17} {'torch (better format)':>22} {'matrix product':>17}  speed  MiB")
    for device in map(torch.device, list_devices()):
        for dtype in (torch.float32, torch.bfloat16):
            speeds = {
                (level, passes): compare(level, passes, device, dtype, rounds)
                for level in levels
                for passes in PASSES
            }
            for passes, name in PASSES.items():
                ratios = [speeds[level, passes] for level in levels]
                mean = statistics.geometric_mean(ratios)
                print(
                    f"{device.type} {str(dtype)[6:]} {name}: {mean:.2f} times as fast as torch's "
                    f"in the geometric mean, {min(ratios):.2f} at least"
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
