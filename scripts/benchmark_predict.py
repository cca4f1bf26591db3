"""Compare the speed and memory of our tiled prediction with MONAI's and with the bare network.

An untrained network with fused batch norm runs over a synthetic image with one channel in three
ways: with `unet.inference.sliding_window`, with MONAI's `sliding_window_inference` if it is
installed, and bare: over one tile as often as our prediction has tiles, discarding the results.

With --folder, `predict_files` and `evaluate` with its report over folders of PNGs are compared with
the bare network, which runs as often on one image in memory.

All candidates run in turn in one process, so that a noisy machine slows all of them down equally,
and ratios are computed within a round. Compare the rows of one run, not rows of two runs. Peak
memory is measured in a separate process for each candidate, without the image and the network.

With --checkpoint, --onnx and --int8, the script compares a trained model with its exported files
instead: how long each takes for one tile.
"""

import argparse
import contextlib
import importlib.util
import io
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmarking import (
    MemoryMeter,
    Times,
    list_devices,
    make_parser,
    run_in_new_process,
    time_in_turns,
)
from PIL import Image
from torch import Tensor

from unet.build import build_network
from unet.checkpoint import save_checkpoint
from unet.config.loader import config_from_dict
from unet.data.normalization import Normalization
from unet.evaluation.evaluate import evaluate
from unet.inference.loading import load_predictor
from unet.inference.predict import predict_files
from unet.inference.predictor import Predictor
from unet.inference.sliding_window import Tiles, sliding_window
from unet.models.fuse import fuse_batch_norm
from unet.models.unet import UNet, argmax_classes

QUICK_SIZE, QUICK_TILES, QUICK_WIDTHS, QUICK_ROUNDS = 256, [64, 128], [4, 8], 2
# Goals: speeds at least, memory at most.
SPEED_OF_MONAI, MEMORY_OF_MONAI, SPEED_OF_BARE, FOLDER_OF_BARE = 1.3, 0.5, 0.85, 0.9
CHECKPOINT, ONNX = "float32 in torch", "float32 in onnxruntime"
INT8 = "INT8 in onnxruntime"
BARE, OURS = "bare network", "ours"
MONAI = {mode: f"monai, {mode}" for mode in ("constant", "gaussian")}

# Predicts an image (1, H, W).
Candidate = Callable[[Tensor], object]
Key = tuple[str, int]
"""Name and overlap of a candidate."""


class Network:
    """The network that all candidates call; it counts its input pixels."""

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


def make_tiles(network: Network, tile: int, overlap: int) -> Tiles:
    """Square tiles on the network's grid that meet in the middle of their overlap."""
    return Tiles((tile, tile), overlap, network.net.output_stride, blend=False)


def make_bare(network: Network, tile: int, overlap: int) -> Candidate:
    """Run one tile as often as ours has tiles, and discard the results."""

    def run(image: Tensor) -> None:
        side, starts = make_tiles(network, tile, overlap).place(0, image.shape[1])
        one = image[None, :, :side, :side].contiguous(memory_format=torch.channels_last)
        for _ in range(len(starts) ** 2):
            network(one)

    return run


def make_ours(network: Network, tile: int, overlap: int) -> Candidate:
    """Call `sliding_window` as `Predictor.predict` does."""
    tiles = make_tiles(network, tile, overlap)
    return lambda image: sliding_window(network, image, tiles, finish=argmax_classes)


def make_monai(network: Network, tile: int, overlap: int, mode: str) -> Candidate:
    """Call MONAI's function with the same overlap."""
    from monai.inferers import sliding_window_inference

    # MONAI rounds the distance of tiles down; half a pixel avoids losing a whole one.
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
) -> dict[Key, Candidate]:
    """Make all candidates, with the overlap and without."""
    candidates: dict[Key, Candidate] = {}
    for pixels in dict.fromkeys((overlap, 0)):
        candidates[BARE, pixels] = make_bare(network, tile, pixels)
        candidates[OURS, pixels] = make_ours(network, tile, pixels)
        if with_monai:
            # Without an overlap both modes do the same.
            for mode in MONAI if pixels else ["constant"]:
                candidates[MONAI[mode], pixels] = make_monai(network, tile, pixels, mode)
    return candidates


def make_image(size: int, device: torch.device) -> Tensor:
    """Make noise (1, size, size)."""
    return torch.randn(1, size, size, generator=torch.Generator().manual_seed(0)).to(device)


@torch.inference_mode()
def measure_memory(
    key: Key, tile: int, widths: list[int], classes: int, size: int, device: torch.device
) -> float:
    """Return the MiB that one run needs at its peak, without image and network, in a new process.

    The memory of the libraries themselves is not counted.
    """
    name, overlap = key
    with_monai = name in MONAI.values()
    # Libraries allocate their own buffers once.
    tiny, small = Network([4, 8], classes, device), min(overlap, 16)
    make_candidates(tiny, 32, small, with_monai)[name, small](make_image(48, device))
    network, image = Network(widths, classes, device), make_image(size, device)
    run = make_candidates(network, tile, overlap, with_monai)[key]
    meter = MemoryMeter(device)
    run(image)
    return meter.peak()


def measure_times(
    network: Network, candidates: dict[Key, Candidate], image: Tensor, tile: int, rounds: int
) -> tuple[dict[Key, Times], dict[Key, int]]:
    """Return the times of each candidate, and the input pixels of the network."""
    # The first call is slower, also with each size of tiles.
    for run in candidates.values():
        run(image[:, :tile, :tile])
    for _, overlap in candidates:
        side, _ = make_tiles(network, tile, overlap).place(0, image.shape[1])
        network(image[None, :, :side, :side])
    pixels = {}
    for key, run in candidates.items():
        network.pixels = 0
        run(image)
        pixels[key] = network.pixels
    runs = {key: partial(run, image) for key, run in candidates.items()}
    return time_in_turns(runs, rounds, image.device), pixels


def speed(times: dict[Key, Times], one: Key, other: Key) -> float:
    """Return the speed of a candidate as a multiple of another's: the median of the rounds."""
    return statistics.median(times[other].ratios(times[one]))


def compare(
    arguments: argparse.Namespace, network: Network, image: Tensor, tile: int, overlap: int
) -> None:
    """Print a table for one tile size, and whether the goals are reached."""
    size, device = image.shape[1], image.device
    with_monai = importlib.util.find_spec("monai") is not None
    print(f"\ntiles of at most {tile} x {tile}, overlap {overlap} and 0")
    if not with_monai:
        print("monai: left out, because it is not installed; see the extra bench")
    with torch.inference_mode():
        candidates = make_candidates(network, tile, overlap, with_monai)
        times, pixels = measure_times(network, candidates, image, tile, arguments.rounds)
    memory = dict.fromkeys(candidates, math.nan)
    for key in [(OURS, 0)] if arguments.quick else candidates:
        settings = (arguments.widths, arguments.classes, size, device)
        memory[key] = run_in_new_process(measure_memory, key, tile, *settings)
    print(
        f"{'':17} {'overlap':>8} {'megapixels/s: min':>18} {'median':>8} "
        f"{'of bare, overlap 0':>19} {'computed':>9} {'peak MiB':>9}"
    )
    for key, one in times.items():
        print(
            f"{key[0]:17} {key[1]:8} {size**2 / 1e6 / max(one.seconds):18.3f} "
            f"{size**2 / 1e6 / one.median:8.3f} {speed(times, key, (BARE, 0)):19.3f} "
            f"{pixels[key] / size**2:9.3f} {memory[key]:9.1f}"
        )
    ours = (OURS, overlap)
    for name in MONAI.values():
        other = (name, overlap)
        if other in times:
            # Ours has smaller tiles where that saves pixels; per pixel shows the speed without it.
            per_pixel = speed(times, ours, other) * pixels[ours] / pixels[other]
            print(
                f"ours over {name}, overlap {overlap}:\n"
                f"  {speed(times, ours, other):.3f} times its speed; the goal is at least "
                f"{SPEED_OF_MONAI} ({per_pixel:.3f} times per computed pixel)\n"
                f"  {memory[ours] / memory[other] if memory[other] else math.nan:.3f} times its "
                f"peak; the goal is at most {MEMORY_OF_MONAI}"
            )
    for pixels_shared in dict.fromkeys((overlap, 0)):
        goal = "" if pixels_shared else f"; the goal is at least {SPEED_OF_BARE}"
        ratio = speed(times, (OURS, pixels_shared), (BARE, pixels_shared))
        print(
            f"ours over the bare network, overlap {pixels_shared}:\n"
            f"  {ratio:.3f} times its speed{goal}",
            flush=True,
        )


def compare_folder(widths: list[int], images: int, side: int, rounds: int) -> None:
    """Print the speeds of `predict_files` and `evaluate`, compared with the bare network."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for kind in ("images", "masks"):
            (folder / kind).mkdir()
        for i in range(images):
            pixels = rng.normal(120, 40, (side // 8, side // 8, 3)).clip(0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            picture.save(folder / "images" / f"{i}.png")
            picture.convert("L").point(lambda value: 255 * (value > 128)).save(
                folder / "masks" / f"{i}.png"
            )
        config = config_from_dict(
            {
                "name": "benchmark",
                "data": {
                    "root": name,
                    "classes": {"ground": 0, "object": 255},
                    "validation": {"none": True},
                },
                "model": {"widths": widths},
                "train": {"epochs": 1, "device": "cpu", "precision": "float32"},
            }
        )
        torch.manual_seed(0)
        model = Predictor(
            net=build_network(config, torch.device("cpu")),
            config=config,
            normalization=Normalization(mean=(0.5,) * 3, std=(0.2,) * 3),
            image_range=None,
            val_stems=(),
            palette=None,
            device=torch.device("cpu"),
        )
        save_checkpoint(folder / "best.pt", model.contents())
        net = fuse_batch_norm(model.net)
        image = torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last)

        def bare() -> None:
            with torch.inference_mode():
                for _ in range(images):
                    net(image)

        def predict() -> None:
            with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
                predict_files(
                    [folder / "best.pt"], [str(folder / "images")], folder / "out", overwrite=True
                )

        def score() -> None:
            with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
                evaluate(
                    folder / "best.pt",
                    images=folder / "images",
                    masks=folder / "masks",
                    out=folder / "scores",
                    overwrite=True,
                )

        candidates = {BARE: bare, "predict": predict, "evaluate": score}
        times = time_in_turns(candidates, rounds, torch.device("cpu"))
    for command in ("predict", "evaluate"):
        ratios = times[BARE].ratios(times[command])
        print(
            f"{command}, {images} PNGs of {side} x {side}: "
            f"{images / times[command].median:.1f} images/s, "
            f"{statistics.median(ratios):.3f} times the speed of the bare network (rounds: "
            f"{', '.join(f'{ratio:.3f}' for ratio in ratios)}); the goal is at least "
            f"{FOLDER_OF_BARE}",
            flush=True,
        )


def compare_files(files: dict[str, str], tile: int, rounds: int, device: torch.device) -> None:
    """Print the time of each file for a tile, as `Predictor.logits` computes it."""
    models = {}
    for name, path in files.items():
        settings = [f"tiling.size=[{tile},{tile}]"]
        if name == CHECKPOINT:
            settings.append("train.precision=float32")
        models[name] = load_predictor(Path(path), device.type, settings)
    image = torch.rand(models[CHECKPOINT].net.in_channels, tile, tile)
    runs = {name: partial(model.logits, image) for name, model in models.items()}
    for run in runs.values():
        run()
    times = time_in_turns(runs, rounds, device)
    print(f"\n{tile} x {tile} pixels, {torch.get_num_threads()} threads, {rounds} rounds")
    print(
        f"{'':28} {'ms, best':>9} {'median':>8} {'of the speed of torch, best':>28} {'median':>8}"
    )
    for name, one in times.items():
        print(
            f"{name:28} {1000 * min(one.seconds):9.1f} {1000 * one.median:8.1f} "
            f"{min(times[CHECKPOINT].seconds) / min(one.seconds):28.2f} "
            f"{statistics.median(times[CHECKPOINT].ratios(one)):8.2f}"
        )
    if ONNX in times and INT8 in times:
        best = min(times[ONNX].seconds) / min(times[INT8].seconds)
        median = statistics.median(times[ONNX].ratios(times[INT8]))
        print(f"{INT8} over {ONNX}: {best:.2f} times its speed (best), {median:.2f} (median)")


def main(argv: list[str] | None = None) -> int:
    """Print a table for each tile size."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--folder",
        action="store_true",
        help="compare predict_files and evaluate over folders with the bare network instead",
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs=2,
        default=[1000, 100],
        metavar="N",
        help="of 256 x 256 and of 1024 x 1024 pixels, with --folder (default: 1000 100)",
    )
    parser.add_argument(
        "--size", type=int, default=4096, help="height and width of the image (default: 4096)"
    )
    parser.add_argument(
        "--tile",
        type=int,
        nargs="+",
        default=[512, 1024],
        metavar="PIXELS",
        help="height and width of the largest tiles, one table each (default: 512 1024)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="shared by neighbouring tiles (default: as unet predict, twice the network's margin)",
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
    parser.add_argument("--device", choices=list_devices(), default="cpu", help="(default: cpu)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's choice)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--checkpoint", metavar="FILE", help="a trained model")
    parser.add_argument("--onnx", metavar="FILE", help="its exported file")
    parser.add_argument("--int8", metavar="FILE", help="its file exported with --int8")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.size, arguments.tile = QUICK_SIZE, QUICK_TILES
        arguments.widths, arguments.rounds = QUICK_WIDTHS, QUICK_ROUNDS
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.folder:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        sides = (32, 64) if arguments.quick else (256, 1024)
        for images, side in zip(arguments.images, sides, strict=True):
            count = 2 if arguments.quick else images
            compare_folder(arguments.widths, count, side, arguments.rounds)
        return 0
    device = torch.device(arguments.device)
    given = {CHECKPOINT: arguments.checkpoint, ONNX: arguments.onnx, INT8: arguments.int8}
    if files := {name: path for name, path in given.items() if path is not None}:
        if CHECKPOINT not in files:
            parser.error("--onnx and --int8 need --checkpoint, the model to compare with")
        for tile in arguments.tile:
            compare_files(files, tile, arguments.rounds, device)
        return 0
    network = Network(arguments.widths, arguments.classes, device)
    net = network.net
    stride = net.output_stride
    overlap = 2 * net.margin if arguments.overlap is None else arguments.overlap
    if overlap < 0 or overlap % stride:
        parser.error(f"--overlap: got {overlap}, expected a multiple of {stride}")
    for tile in arguments.tile:
        if tile % stride or not overlap < tile <= arguments.size:
            parser.error(
                f"--tile: got {tile}, expected a multiple of {stride}, more than the overlap of "
                f"{overlap} and at most the image's {arguments.size}"
            )
    print(
        f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads; widths "
        f"{', '.join(map(str, arguments.widths))}, float32, channels last\n"
        f"image of {arguments.size} x {arguments.size} pixels. Peaks include "
        f"{arguments.classes * arguments.size**2 * 4 / 2**20:.1f} MiB for its logits, which the "
        "bare network does not keep.\nSpeeds are in megapixels of the image; 'computed' is the "
        "number of input pixels of the network for each pixel of the image."
    )
    image = make_image(arguments.size, device)
    for tile in arguments.tile:
        compare(arguments, network, image, tile, overlap)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
