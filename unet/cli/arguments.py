"""The arguments of every command."""

import argparse
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from unet.cli import commands

# The form of a setting: train.epochs=5, but neither --out=masks nor runs/lr=0.1/best.pt.
_SETTING = re.compile(r"\w+(\.[^=/\\]+)*=")

_EPILOG = (
    "Settings of the config can be changed by KEY=VALUE anywhere on the command line, such as "
    "train.epochs=5, data.root=my/data or tiling.size=[512,512]."
)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line into arguments and settings, which may stand anywhere in it.

    A word is a setting if it has the form KEY=VALUE, is not the value of an option, and there is no
    file of that name. Words that are not a command print a message and raise SystemExit(2).
    """
    parser, value_options = _build_parser()
    settings: list[str] = []
    others: list[str] = []
    is_value = False
    for word in words:
        is_setting = _SETTING.match(word) and not is_value and not Path(word).exists()
        (settings if is_setting else others).append(word)
        is_value = word in value_options
    arguments, unknown = parser.parse_known_args(others)
    if arguments.run is commands.run_predict:  # images may follow options
        arguments.paths += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        parser.error(
            f"got {' '.join(unknown)}, which is neither an argument nor a setting; settings have "
            "the form KEY=VALUE, such as train.epochs=5"
        )
    return arguments, settings


def _build_parser() -> tuple[argparse.ArgumentParser, set[str]]:
    """Return the parser, and all options that take exactly one value."""
    parser = argparse.ArgumentParser(
        prog="unet",
        description="Train, evaluate and run U-Net segmentation models.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"unet {version('unet')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    options: set[str] = set()
    for name, (run, add_arguments, text) in _COMMANDS.items():
        command = subparsers.add_parser(
            name, help=text, description=text, epilog=_EPILOG, allow_abbrev=False
        )
        command.set_defaults(run=run)
        _add_shared(name, command)
        add_arguments(command)
        for action in command._actions:  # argparse has no public list of them
            options.update(action.option_strings if action.nargs is None else ())
    return parser, options


def _add_shared(name: str, parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--traceback", action="store_true", help="show where an error arose")
    if name != "info":
        add("--overwrite", action="store_true", help="replace existing results")
    if name in ("train", "check"):
        add("config", type=Path, metavar="CONFIG", help="YAML file; see configs/")
        add("--runs", metavar="DIR", help="folder of all runs (default: the setting runs)")
    if name in ("evaluate", "export"):
        text = "best.pt or last.pt" + ("; several are averaged" if name == "evaluate" else "")
        add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=text)
    if name in ("evaluate", "predict"):
        add(
            "--tta",
            type=_tta_names,
            action="extend",
            default=[],
            metavar="NAMES",
            help="test-time augmentation, such as flips,turns: average the probabilities over 4 "
            "flips, 4 quarter turns (8 images with both) or 3 scales",
        )


def _tta_names(text: str) -> list[str]:
    known = ("flips", "turns", "scales")
    if not set(text.split(",")) <= set(known):
        raise argparse.ArgumentTypeError(
            f"got {text}, expected one or more of {', '.join(known)}, such as flips,turns"
        )
    return text.split(",")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--resume", action="store_true", help="continue the run; start it if it does not exist")
    add("--folds", choices=["all"], help="train a model for each fold of data.validation.folds")


def _add_init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of images and masks")
    add("-o", "--out", type=Path, metavar="FILE", required=True, help="YAML file to write")


def _add_check(parser: argparse.ArgumentParser) -> None:
    text = "draw samples and augmentations as this PNG"
    parser.add_argument("--pictures", type=Path, metavar="FILE", help=text)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", metavar="DIR", help="score this folder or pattern, not the validation split")
    add("--masks", metavar="DIR", help="masks of --images")
    add("--labels", metavar="DIR", help="label images of --images, for --instances")
    text = "folder of the report (default: evaluation_NAME next to NAME.pt)"
    add("-o", "--out", type=Path, metavar="DIR", help=text)
    text = "largest distance at which a boundary pixel is a match (default: 2)"
    add("--boundary", type=float, default=2.0, metavar="PIXELS", help=text)
    add(
        "--instances",
        nargs="?",
        const=True,
        metavar="CLASS",
        help="also score the objects of a class (default: the second of two); the true objects "
        "come from label images, or else are the connected components of the mask",
    )
    text = "also compute precision and recall at every threshold, for models of two classes"
    add("--threshold", action="store_true", help=text)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="CHECKPOINT [CHECKPOINT ...] IMAGES",
        help="checkpoints, whose probabilities are averaged; then image files, folders or glob "
        "patterns",
    )
    add("-o", "--out", type=Path, metavar="DIR", required=True, help="folder of the masks")
    add("--overlay", action="store_true", help="also draw each mask over its image")
    text = "also write a TIFF with a page for each class"
    add("--probabilities", action="store_true", help=text)
    add("--instances", action="store_true", help="also write a label image of the objects")
    text = "choose the second of two classes where its probability is at least P"
    add("--threshold", type=float, metavar="P", help=text)
    text = "replace objects with fewer pixels by the first class, the background"
    add("--min-size", type=int, default=0, metavar="PIXELS", help=text)
    add("--keep-largest", action="store_true", help="keep only the largest object of each class")
    add(
        "--windows",
        action=argparse.BooleanOptionalAction,
        help="read TIFFs in windows (default: those with a georeference or nodata, BigTIFFs, and "
        "those above 64 megapixels)",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "model.onnx (needs the extra onnx) or model.pt2 (torch.export)"
    add("-o", "--out", type=Path, metavar="FILE", required=True, help=text)
    text = "probabilities of every class, or ids of the most probable one (default: %(default)s)"
    add("--output", choices=["probabilities", "classes"], default="probabilities", help=text)


def _add_info(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt or last.pt")
    text = "image size to count operations for (default: the training crop, or 512 512)"
    add("--size", type=int, nargs=2, metavar=("H", "W"), help=text)


_COMMANDS = {
    "train": (commands.run_train, _add_train, "train the model of a config"),
    "init": (commands.run_init, _add_init, "write a config for a folder of images and masks"),
    "check": (commands.run_check, _add_check, "read all data of a config; report errors"),
    "evaluate": (commands.run_evaluate, _add_evaluate, "score a checkpoint"),
    "predict": (commands.run_predict, _add_predict, "write masks for images"),
    "export": (commands.run_export, _add_export, "write a file that runs without unet"),
    "info": (commands.run_info, _add_info, "show a checkpoint's config, scores and costs"),
}
