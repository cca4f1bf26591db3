"""The arguments of every command."""

import argparse
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from unet.cli import commands
from unet.cli.calibrate import run_calibrate
from unet.cli.review import run_review
from unet.cli.words import find_command, sort_words
from unet.runtime.optional import unet_version
from unet.runtime.text import shorten


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line into arguments and settings KEY=VALUE, which may stand anywhere in it.

    Help, also that of `unet help COMMAND`, and version are printed, and raise SystemExit(0).

    Raises:
        ValueError: if a word is not understood.
    """
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    command, rest = find_command(words, _COMMANDS)
    if command is None:
        _main_parser().parse_args(rest)
        raise ValueError(f"expected a command: {', '.join(_COMMANDS)}; see unet --help")
    parsers = {name: _command_parser(name) for name in _COMMANDS}
    files, options, settings = sort_words(rest, command, parsers)
    arguments = parsers[command].parse_args([*files, *options])
    for name in set(tta := getattr(arguments, "tta", [])):
        if tta.count(name) > 1:
            raise ValueError(f"--tta: got {name} {tta.count(name)} times, expected it once")
    return arguments, settings


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions. Options are not abbreviated."""

    def __init__(self, prog: str, usage: str, text: str, epilog: str) -> None:
        width = shutil.get_terminal_size().columns - 9  # as argparse, less "usage: "
        usage = textwrap.fill(usage, max(width, 20), subsequent_indent="  ")
        super().__init__(prog, usage, text, epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        required, unknown = "the following arguments are required: ", "unrecognized arguments: "
        if message.startswith(unknown):
            words = shorten(message.removeprefix(unknown))
            message = f"{words}: settings have the form KEY=VALUE, such as train.epochs=5"
        if message.startswith(required):
            missing = message.removeprefix(required)
            message = f"{self.prog}: expected {missing}, for example: {_EXAMPLES[self.prog]}"
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _main_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "unet",
        "unet COMMAND ...",
        "Train, evaluate and run U-Net segmentation models.",
        "The options of a command: unet COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=f"unet {unet_version()}")
    commands = parser.add_argument_group("commands")
    for name, (_, _, text) in _COMMANDS.items():
        commands.add_argument(name, nargs="?", help=text)
    return parser


def _command_parser(name: str) -> argparse.ArgumentParser:
    run, add_arguments, text = _COMMANDS[name]
    prog = f"unet {name}"
    epilog = f"Example: {_EXAMPLES[prog]}"
    if name in ("train", "check"):
        epilog = f"KEY=VALUE changes a setting of the config, see docs/configuration.md. {epilog}"
    elif name not in ("init", "import"):
        epilog = f"KEY=VALUE changes a setting that the trained model allows to change. {epilog}"
    parser = _Parser(prog, _usage(prog), f"{text[0].upper()}{text[1:]}.", epilog)
    parser.set_defaults(run=run)
    add_arguments(parser)
    add = parser.add_argument
    if name != "info":
        add("--overwrite", action="store_true", help="replace existing results")
    add("--traceback", action="store_true", help="show where an error arose")
    return parser


def _usage(prog: str) -> str:
    places = {
        "train": "CONFIG|DIR",
        "check": "CONFIG",
        "init": "DIR",
        "import": "ANNOTATIONS [IMAGES] -o DIR",
        "evaluate": "CHECKPOINT...",
        "calibrate": "CHECKPOINT",
        "predict": "CHECKPOINT... IMAGES...",
        "review": "CONFIG|RUN...",
        "export": "CHECKPOINT -o FILE",
        "info": "CHECKPOINT",
    }
    name = prog.removeprefix("unet ")
    settings = "" if name in ("init", "import") else " [KEY=VALUE...]"
    return f"{prog} {places[name]} [OPTIONS]{settings}"


def _number(kind: Callable[[str], float], lowest: float, highest: float) -> Callable[[str], float]:
    """Return a function that reads a number within bounds."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = lowest - 1
        if not lowest <= number <= highest:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected {name} from {lowest:g} to {highest:g}"
            )
        return number

    return read


def _tta_names(text: str) -> list[str]:
    known = ("flips", "turns", "scales")
    if not set(text.split(",")) <= set(known):
        raise argparse.ArgumentTypeError(
            f"got {text}, expected one or more of {', '.join(known)}, such as flips,turns"
        )
    return text.split(",")


def _add_tta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta",
        type=_tta_names,
        action="extend",
        default=[],
        metavar="NAMES",
        help="test-time augmentation, such as flips,turns: average the probabilities over 4 "
        "flips, 4 quarter turns (8 images with both) or 3 scales",
    )


def _add_config(parser: argparse.ArgumentParser, text: str = "") -> None:
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help=f"YAML file; unet init writes one{text}")
    add("--runs", metavar="DIR", help="folder of all runs (default: the setting runs)")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(
        parser, "; or a folder of images and masks, which is trained on as it would propose"
    )
    add = parser.add_argument
    add("--resume", action="store_true", help="continue the run; start it if it does not exist")
    add("--folds", choices=["all"], help="train a model for each fold of data.validation.folds")
    text = "train for this long, instead of train.epochs; the steps that fit are chosen by timing"
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--minutes", type=_number(float, 0.1, 100_000), metavar="N", help=text)
    text = "a first look: the same as --minutes 1"
    lengths.add_argument("--quick", action="store_true", help=text)


def _add_init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of images and masks")
    text = "YAML file to write (default: configs/NAME.yaml, with the name of the folder)"
    add("-o", "--out", type=Path, metavar="FILE", help=text)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = (
        "file or folder of annotations: COCO, LabelMe, VIA, CVAT, YOLO (data.yaml), Label Studio, "
        "GeoJSON, or a CSV of run lengths"
    )
    add("annotations", type=Path, metavar="ANNOTATIONS", help=text)
    text = "folder of the annotated images (default: the folder of the annotations)"
    add("images", type=Path, nargs="?", metavar="IMAGES", help=text)
    text = "folder to write images, masks and label images into; the config is configs/NAME.yaml"
    add("-o", "--out", type=Path, metavar="DIR", required=True, help=text)
    text = (
        "which of overlapping shapes is on top: later ones of the file (default), or smaller ones"
    )
    add("--order", choices=["file", "area"], default="file", help=text)
    text = (
        "images without objects become background or are left out (default: background if the "
        "annotations name them)"
    )
    add("--empty", choices=["background", "skip"], help=text)
    text = "also write label images, in which every object has a number"
    add("--instances", action="store_true", help=text)


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    text = "check the split of each fold of data.validation.folds"
    parser.add_argument("--folds", choices=["all"], help=text)
    text = "draw samples and their augmentation as this PNG"
    parser.add_argument("--pictures", type=Path, metavar="FILE", help=text)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "best.pt or last.pt, or the folder of a run; several are averaged"
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help=text)
    _add_tta(parser)
    text = "score this folder or pattern instead of the validation split"
    add("--images", metavar="DIR", help=text)
    add("--masks", metavar="DIR", help="masks of --images")
    add("--labels", metavar="DIR", help="label images of --images, for --instances")
    text = "folder of the report (default: evaluation_NAME next to NAME.pt)"
    add("-o", "--out", type=Path, metavar="DIR", help=text)
    text = "largest distance at which boundary pixels match (default: 2)"
    add("--boundary", type=_number(float, 0, 10_000), default=2.0, metavar="PIXELS", help=text)
    add(
        "--instances",
        nargs="?",
        const=True,
        metavar="CLASS",
        help="also score the objects of a class (default: the second of two). The true objects are "
        "those of the label images, or else the connected components of the mask",
    )
    text = "also compute precision and recall at every threshold, for models of two classes"
    add("--threshold", action="store_true", help=text)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "best.pt or last.pt, or the folder of a run"
    add("checkpoint", metavar="CHECKPOINT", help=text)
    text = "file to write (default: NAME-calibrated.pt next to NAME.pt)"
    add("-o", "--out", type=Path, metavar="FILE", help=text)
    text = (
        "promise for 95 %% of images that at most this fraction of the pixels of a class is "
        "missed, such as 0.05"
    )
    add("--max-missed", type=_number(float, 1e-6, 0.999), metavar="RATE", help=text)
    text = "calibrate on this folder or pattern instead of the validation split"
    add("--images", metavar="DIR", help=text)
    add("--masks", metavar="DIR", help="masks of --images")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="CHECKPOINT... IMAGES...",
        help="one or more checkpoints or folders of runs, whose probabilities are averaged; then "
        "image files, folders or quoted glob patterns",
    )
    text = "folder of the masks (default: predictions)"
    add("-o", "--out", type=Path, metavar="DIR", default=Path("predictions"), help=text)
    _add_tta(parser)
    add("--overlay", action="store_true", help="also draw each mask over its image")
    text = "also write a TIFF with a page for each class"
    add("--probabilities", action="store_true", help=text)
    add("--instances", action="store_true", help="also write a label image of the objects")
    text = "also draw where the model is unsure, and list the most uncertain images first"
    add("--uncertainty", action="store_true", help=text)
    text = (
        "also write the outlines of objects: geojson, labelme, imagej (a file for each image) "
        "or coco (one for all)"
    )
    formats = ["geojson", "coco", "labelme", "imagej"]
    add("--polygons", choices=formats, metavar="FORMAT", help=text)
    text = "choose the second of two classes where its probability is at least P"
    add("--threshold", type=_number(float, 0, 1), metavar="P", help=text)
    text = "class whose promised threshold is used, see unet calibrate (default: the second of two)"
    add("--promise", metavar="CLASS", help=text)
    text = "remove objects with fewer pixels: they become the first class, the background"
    add("--min-size", type=_number(int, 0, 10**9), default=0, metavar="PIXELS", help=text)
    add("--keep-largest", action="store_true", help="keep only the largest object of each class")
    add(
        "--windows",
        action=argparse.BooleanOptionalAction,
        help="read TIFFs in windows (default: those with a georeference or nodata, BigTIFFs, and "
        "those above 64 megapixels)",
    )


def _add_review(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = (
        "a YAML file, whose folds are trained if they are not yet; or the runs of the folds, of "
        "which one is enough"
    )
    add("paths", nargs="+", metavar="CONFIG|RUN", help=text)
    add("--runs", metavar="DIR", help="folder of all runs (default: the setting runs)")
    text = "train each fold for this long, instead of train.epochs"
    add("--minutes", type=_number(float, 0.1, 100_000), metavar="N", help=text)
    text = "folder of the review (default: NAME_review in the folder of the runs)"
    add("-o", "--out", type=Path, metavar="DIR", help=text)


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "best.pt or last.pt, or the folder of a run"
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help=text)
    text = "model.onnx (needs the extra onnx) or model.pt2 (torch.export)"
    add("-o", "--out", type=Path, metavar="FILE", required=True, help=text)
    text = "probabilities of all classes, or the most probable class (default: %(default)s)"
    add("--output", choices=["probabilities", "classes"], default="probabilities", help=text)
    text = "quantize the ONNX file to 8-bit integers and compare it with the validation images"
    add("--int8", action="store_true", help=text)
    text = "by how much IoU may fall with --int8, the mean and each class (default: 0.002)"
    add("--max-loss", type=_number(float, 0, 1), metavar="IOU", help=text)


def _add_info(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "best.pt or last.pt, or the folder of a run"
    add("checkpoint", metavar="CHECKPOINT", help=text)
    text = "image size to count operations for (default: the training crop, or 512 512)"
    add("--size", type=_number(int, 1, 65_536), nargs=2, metavar=("H", "W"), help=text)


_COMMANDS = {
    "init": (commands.run_init, _add_init, "write a config for a folder of images and masks"),
    "import": (commands.run_import, _add_import, "write masks and a config for annotations"),
    "check": (commands.run_check, _add_check, "read all data of a config and report errors"),
    "train": (commands.run_train, _add_train, "train the model of a config"),
    "evaluate": (commands.run_evaluate, _add_evaluate, "score a trained model"),
    "calibrate": (run_calibrate, _add_calibrate, "calibrate the probabilities of a model"),
    "predict": (commands.run_predict, _add_predict, "write masks for images"),
    "review": (run_review, _add_review, "find masks that are probably wrong"),
    "export": (commands.run_export, _add_export, "write a model to a file that runs without unet"),
    "info": (commands.run_info, _add_info, "show the scores, costs and config of a checkpoint"),
}

_EXAMPLES = {
    "unet init": "unet init data/mine",
    "unet import": "unet import annotations.json images/ -o data/mine",
    "unet check": "unet check configs/mine.yaml --pictures samples.png",
    "unet train": "unet train configs/mine.yaml train.epochs=20 'augment.crop=[128,128]'",
    "unet evaluate": "unet evaluate runs/mine/best.pt",
    "unet calibrate": "unet calibrate runs/mine/best.pt --max-missed 0.05",
    "unet predict": "unet predict runs/mine/best.pt images/ 'tiling.size=[512,512]'",
    "unet review": "unet review configs/mine.yaml --minutes 2",
    "unet export": "unet export runs/mine/best.pt -o model.onnx",
    "unet info": "unet info runs/mine/best.pt",
}
