"""Compare the scores that networks reach in the same time on a folder of images and masks.

Ours is the config that `unet init` proposes for the folder and the time. The others are the U-Nets
of segmentation_models_pytorch (resnet18 and resnet34, random weights) and MONAI (BasicUNet,
DynUNet), if these are installed. They are trained in float32 by the same loop, on the same crops
with the same augmentation, with AdamW, a cosine schedule and a learning rate of 1e-3, and scored on
the same validation images by the same function. Every training runs alone, in a process of its own.
Other programs on the machine make the comparison unfair.
"""

import argparse
import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from benchmarking import make_parser, run_in_new_process
from torch import nn

from unet.config.loader import config_from_dict
from unet.config.schema import Config
from unet.inspection.propose import propose
from unet.metrics.monitor import best_row
from unet.runtime.optional import is_installed
from unet.training.train import train


def smp_unet(encoder: str, config: Config) -> nn.Module:
    """Make a U-Net of segmentation_models_pytorch."""
    from segmentation_models_pytorch import Unet

    classes, channels = len(config.data.classes), config.model.in_channels
    net: nn.Module = Unet(encoder, encoder_weights=None, in_channels=channels, classes=classes)
    return net


def basic_unet(config: Config) -> nn.Module:
    """Make MONAI's BasicUNet with its default widths."""
    from monai.networks.nets import BasicUNet

    channels, classes = config.model.in_channels, len(config.data.classes)
    net: nn.Module = BasicUNet(spatial_dims=2, in_channels=channels, out_channels=classes)
    return net


def dyn_unet(config: Config) -> nn.Module:
    """Make MONAI's DynUNet with five levels."""
    from monai.networks.nets import DynUNet

    net: nn.Module = DynUNet(
        spatial_dims=2,
        in_channels=config.model.in_channels,
        out_channels=len(config.data.classes),
        kernel_size=[3] * 5,
        strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4,
    )
    return net


# The package and the network of each candidate.
CANDIDATES: dict[str, tuple[str, Callable[[Config], nn.Module] | None]] = {
    "ours": ("unet", None),
    "smp-resnet18": ("segmentation_models_pytorch", lambda config: smp_unet("resnet18", config)),
    "smp-resnet34": ("segmentation_models_pytorch", lambda config: smp_unet("resnet34", config)),
    "monai-basic": ("monai", basic_unet),
    "monai-dynunet": ("monai", dyn_unet),
}
# The common recipe of the others; batches, crops and augmentation are those of ours.
RECIPE = ["train.precision=float32", "train.ema_decay=null", "optimizer.lr=1e-3"]


def run_candidate(name: str, text: str, overrides: list[str]) -> dict[str, float]:
    """Train one candidate; return the row of metrics.csv with its best score."""
    _, make = CANDIDATES[name]
    if make is None:
        config = config_from_dict({"name": name, **yaml.safe_load(text)}, overrides)
        run = train(config)
    else:
        config = config_from_dict({"name": name, **yaml.safe_load(text)}, [*RECIPE, *overrides])
        run = train(config, network=make(config))
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return best_row(rows, config.train.monitor)


def compare(arguments: argparse.Namespace) -> None:
    """Train all candidates with all seeds and print a table."""
    folder, minutes = arguments.folder, arguments.minutes
    text = propose(folder, "ours", minutes=minutes)
    print(text)
    lines = [
        f"{folder.name}, {minutes:g} minutes, seeds {', '.join(map(str, arguments.seeds))}",
        "candidate       mean IoU        spread   mean Dice  pixel accuracy   steps",
    ]
    for name in arguments.candidates:
        if not is_installed(CANDIDATES[name][0]):
            lines.append(f"{name}: left out, because {CANDIDATES[name][0]} is not installed")
            continue
        rows = []
        for seed in arguments.seeds:
            with TemporaryDirectory() as runs:
                settings = [f"train.seed={seed}", f"train.minutes={minutes}", f"runs={runs}"]
                settings += ["train.previews=0", *arguments.settings]
                rows.append(run_in_new_process(run_candidate, name, text, settings))
        means = [
            statistics.mean(row[key] for row in rows)
            for key in ("mean_iou", "mean_dice", "pixel_accuracy", "step")
        ]
        spread = statistics.stdev(row["mean_iou"] for row in rows) if len(rows) > 1 else 0.0
        lines.append(
            f"{name:15} {means[0]:8.4f} {spread:13.4f} {means[1]:11.4f} {means[2]:15.4f} "
            f"{means[3]:7.0f}"
        )
        print("\n".join(lines), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Compare the candidates on one folder."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="images and masks, as unet init takes them")
    parser.add_argument("--minutes", type=float, default=5.0, help="(default: %(default)g)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=[*CANDIDATES])
    text = "changes for all candidates"
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.minutes, arguments.seeds = 0.15, [0]
        small = ["model.widths=[4,8]", "augment.crop=[32,32]", "train.num_workers=0"]
        arguments.settings = [*small, *arguments.settings]
    compare(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
