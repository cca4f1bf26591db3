"""Compare the speed and memory of our tiled prediction with MONAI's and with the bare network.

An untrained network with fused batch norm runs over a synthetic image with one channel in three
ways: with `unet.inference.sliding_window`, with MONAI's `sliding_window_inference` if it is
installed, and bare: over one tile as often as our prediction has tiles, discarding the results.

All candidates run in turn in one process, so that a noisy machine slows all of them down equally,
and ratios are computed within a round. Compare the rows of one run, not rows of two runs. Peak
memory is measured in a separate process for each candidate, without the image and the network.
"""

import argparse
import ctypes
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from unet.inference.sliding_window import place_tiles, sliding_window
from unet.models.fuse import fuse_batch_norm
from unet.models.unet import UNet, argmax_classes

QUICK_SIZE, QUICK_TILES, QUICK_WIDTHS, QUICK_ROUNDS = 256, [64, 128], [4, 8], 2
# Of speeds at least, of memory at most.
SPEED_OF_MONAI, MEMORY_OF_MONAI, SPEED_OF_BARE = 1.3, 0.5, 0.85
BARE, OURS = "bare network", "ours"
MONAI = {mode: f"monai, {mode}" for mode in ("constant", "gaussian")}


class Network:
    """The network as all candidates call it, which counts the pixels that it is given."""

    def __init__(self, widths: list[int], classes: int, device: torch.device) -> None:
        torch.manual_seed(0)
        net = fuse_batch_norm(UNet(1, classes, widths))
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.pixels = 0

    def __call__(self, tiles: Tensor) -> Tensor:
        """Tiles (N, 1, h, w) -> logits (N, K, h, w)."""
        self.pixels += len(tiles) * tiles.shape[-2] * tiles.shape[-1]
        logits: Tensor = self.net(tiles.to(memory_format=torch.channels_last))
        return logits


@dataclass
class Measured:
    """What a candidate took, a number of seconds for each round, and what it computed."""

    seconds: list[float] = field(default_factory=list)
    pixels: int = 0  # that went through the network in one round
    memory: float = math.nan  # MiB

    def speed(self, other: "Measured") -> float:
        """Its speed as a multiple of the other's: the median of the rounds."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(two / one for one, two in pairs)


# What runs over an image (1, H, W); whether it keeps its logits does not matter.
Candidate = Callable[[Tensor], object]


def reason_to_leave_out() -> str | None:
    """Import MONAI and say why it cannot be run, if it cannot."""
    try:
        import monai.inferers  # noqa: F401
    except ImportError as error:
        return f"it cannot be imported ({error}); see the extra bench"
    return None


def make_bare(network: Network, tile: int, overlap: int) -> Candidate:
    """As many tiles as ours takes, and of the same size, but one and the same, and no result."""

    def run(image: Tensor) -> None:
        side, starts = place_tiles(image.shape[1], tile, overlap, network.net.output_stride)
        one = image[None, :, :side, :side].contiguous(memory_format=torch.channels_last)
        for _ in range(len(starts) ** 2):
            network(one)

    return run


def make_ours(network: Network, tile: int, overlap: int) -> Candidate:
    """Call `sliding_window` as `Predictor.predict` does."""
    return lambda image: sliding_window(
        network,
        image,
        (tile, tile),
        overlap,
        align=network.net.output_stride,
        blend=False,
        finish=argmax_classes,
    )


def make_monai(network: Network, tile: int, overlap: int, mode: str) -> Candidate:
    """Make MONAI's, whose tiles lie `tile` - `overlap` apart."""
    from monai.inferers import sliding_window_inference

    # MONAI rounds the distance down: half a pixel keeps a fraction from losing a whole one.
    fraction = max(overlap - 0.5, 0) / tile

    def run(image: Tensor) -> Tensor:
        logits = sliding_window_inference(
            image[None], (tile, tile), 1, network, overlap=fraction, mode=mode
        )
        assert isinstance(logits, Tensor)
        return argmax_classes(logits[0])

    return run


def make_candidates(
    network: Network, tile: int, overlap: int, with_monai: bool
) -> dict[tuple[str, int], Candidate]:
    """All that are compared, by name and overlap: with the overlap, and with none."""
    candidates: dict[tuple[str, int], Candidate] = {}
    for pixels in dict.fromkeys((overlap, 0)):
        candidates[BARE, pixels] = make_bare(network, tile, pixels)
        candidates[OURS, pixels] = make_ours(network, tile, pixels)
        if with_monai:
            # Where nothing overlaps there is nothing to blend.
            for mode in MONAI if pixels else ["constant"]:
                candidates[MONAI[mode], pixels] = make_monai(network, tile, pixels, mode)
    return candidates


def make_image(size: int, device: torch.device) -> Tensor:
    """Noise (1, size, size)."""
    return torch.randn(1, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident(name: str) -> float:
    """MiB of this process's memory, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10


def memory_of(
    name: str, tile: int, overlap: int, arguments: argparse.Namespace, device: torch.device
) -> float:
    """MiB that one run takes at its peak, beside image and network; NaN where it is not known.

    To be run in a process of its own. What the libraries themselves take is not counted.
    """
    if device.type != "cuda" and sys.platform != "linux":
        return math.nan

    def candidate(network: Network, tile: int, overlap: int) -> Candidate:
        with_monai = name in MONAI.values()
        return make_candidates(network, tile, overlap, with_monai)[name, overlap]

    # Libraries' own buffers are made once.
    candidate(Network([4, 8], arguments.classes, device), 32, min(overlap, 16))(
        make_image(48, device)
    )
    network = Network(arguments.widths, arguments.classes, device)
    image, run = make_image(arguments.size, device), candidate(network, tile, overlap)
    synchronize(device)
    if device.type == "cuda":
        before: float = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    run(image)
    synchronize(device)
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Not the peak of getrusage: a process that was begun by a large one inherits that one's.
    return resident("VmHWM") - before


def memory_in_new_process(name: str, tile: int, overlap: int) -> float:
    """Run this script again for the memory of one candidate alone."""
    result = subprocess.run(  # noqa: S603  # this very script
        [
            *(sys.executable, __file__, *sys.argv[1:]),
            *("--memory-of", name, str(tile), str(overlap)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(result.stdout.split()[-1])


def measure(
    network: Network,
    candidates: dict[tuple[str, int], Candidate],
    image: Tensor,
    tile: int,
    rounds: int,
    quick: bool,
) -> dict[tuple[str, int], Measured]:
    """Run every candidate in every round, then each in its own process to measure its memory."""
    measured = {key: Measured() for key in candidates}
    # What is done once, be it for a size of tiles, is not counted.
    for run in candidates.values():
        run(image[:, :tile, :tile])
    for _, overlap in candidates:
        side, _ = place_tiles(image.shape[1], tile, overlap, network.net.output_stride)
        network(image[None, :, :side, :side])
    for _ in range(rounds):
        # In random order: what ran before leaves its mark on cache and heap.
        for key in random.sample(list(candidates), len(candidates)):
            network.pixels = 0
            synchronize(image.device)
            start = time.perf_counter()
            candidates[key](image)
            synchronize(image.device)
            measured[key].seconds.append(time.perf_counter() - start)
            measured[key].pixels = network.pixels
    for name, overlap in [(OURS, 0)] if quick else measured:
        measured[name, overlap].memory = memory_in_new_process(name, tile, overlap)
    return measured


def compare(
    network: Network, image: Tensor, tile: int, overlap: int, rounds: int, quick: bool
) -> None:
    """Print a table for one tile size, and whether the targets are met."""
    size = image.shape[1]
    reason = reason_to_leave_out()
    print(f"\ntiles of at most {tile} x {tile}, overlap {overlap} and 0")
    if reason is not None:
        print(f"monai: left out, as {reason}")
    with torch.inference_mode():
        candidates = make_candidates(network, tile, overlap, reason is None)
        measured = measure(network, candidates, image, tile, rounds, quick)
    print(
        f"{'':17} {'overlap':>8} {'megapixels/s: min':>18} {'median':>8} "
        f"{'of bare, overlap 0':>19} {'computed':>9} {'peak MiB':>9}"
    )
    bound = measured[BARE, 0]
    for (name, pixels), one in measured.items():
        print(
            f"{name:17} {pixels:8} {size**2 / 1e6 / max(one.seconds):18.3f} "
            f"{size**2 / 1e6 / statistics.median(one.seconds):8.3f} {one.speed(bound):19.3f} "
            f"{one.pixels / size**2:9.3f} {one.memory:9.1f}"
        )
    ours = measured[OURS, overlap]
    for name in MONAI.values():
        if (name, overlap) in measured:
            other = measured[name, overlap]
            speed = ours.speed(other)
            # Ours makes tiles smaller where fewer pixels do: what is left without that.
            per_pixel = speed * ours.pixels / other.pixels
            memory = ours.memory / other.memory if other.memory else math.nan
            print(
                f"ours over {name}, overlap {overlap}:\n"
                f"  {speed:.3f} times its speed; the target is at least {SPEED_OF_MONAI} (per "
                f"computed pixel {per_pixel:.3f} times)\n"
                f"  {memory:.3f} times its peak; the target is at most {MEMORY_OF_MONAI}"
            )
    if overlap:
        print(
            f"ours over the bare network, overlap {overlap}:\n"
            f"  {ours.speed(measured[BARE, overlap]):.3f} times its speed"
        )
    print(
        "ours over the bare network, overlap 0:\n"
        f"  {measured[OURS, 0].speed(bound):.3f} times its speed; the target is at least "
        f"{SPEED_OF_BARE}",
        flush=True,
    )


def main() -> int:
    """Print a table for each size of tiles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument(
        "--size", type=int, default=4096, help="side of the image in pixels (default: 4096)"
    )
    parser.add_argument(
        "--tile",
        type=int,
        nargs="+",
        default=[512, 1024],
        metavar="PIXELS",
        help="side of the largest tiles, with a table for each (default: 512 1024)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="of neighbouring tiles (default: what unet takes, twice the network's margin)",
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[32, 64, 128, 256],
        metavar="CHANNELS",
        help="of the network's levels (default: 32 64 128 256)",
    )
    parser.add_argument("--classes", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", choices=devices, default="cpu", help="(default: cpu)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="see that all runs, with numbers that mean nothing"
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.tile = QUICK_SIZE, QUICK_TILES
        arguments.widths, arguments.rounds = QUICK_WIDTHS, QUICK_ROUNDS
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.memory_of is not None:
        name, tile, overlap = arguments.memory_of
        with torch.inference_mode():
            print(memory_of(name, int(tile), int(overlap), arguments, device))
        return 0

    network = Network(arguments.widths, arguments.classes, device)
    net = network.net
    overlap = 2 * net.margin if arguments.overlap is None else arguments.overlap
    if overlap < 0 or overlap % net.output_stride:
        parser.error(f"--overlap: got {overlap}, expected a multiple of {net.output_stride}")
    for tile in arguments.tile:
        if tile % net.output_stride or not overlap < tile <= arguments.size:
            parser.error(
                f"--tile: got {tile}, expected a multiple of {net.output_stride}, more than the "
                f"overlap of {overlap} and at most the image's {arguments.size}"
            )
    print(
        f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads; widths "
        f"{', '.join(map(str, arguments.widths))}, float32, channels last\n"
        f"image of {arguments.size} x {arguments.size} pixels; its logits of {arguments.classes} "
        f"classes take {arguments.classes * arguments.size**2 * 4 / 2**20:.1f} MiB of the peaks, "
        "but the\nbare network keeps none. Speeds are in megapixels of the image; 'computed' are "
        "pixels that went\nthrough the network for each of the image"
    )
    image = make_image(arguments.size, device)
    for tile in arguments.tile:
        compare(network, image, tile, overlap, arguments.rounds, arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
