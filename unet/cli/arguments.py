"""The arguments of every command."""

import argparse
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unet.cli import commands

# The form of a setting: train.epochs=5, but neither --out=masks nor runs/lr=0.1/best.pt.
_SETTING = re.compile(r"\w+(\.[^=/\\]+)*=")

_TTA = ("flips", "turns", "scales")


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line into arguments and settings, which may stand anywhere in it.

    A word is a setting if it has the form KEY=VALUE, is not the value of an option, and there is no
    file of that name.

    Raises:
        SystemExit: with code 2 and a message, if the words are not a command.
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
    """Return the parser and the options that always take a value."""
    epilog = (
        "Settings of the config can be changed by KEY=VALUE anywhere on the command line, such as "
        "train.epochs=5, data.root=my/data or tiling.size=[512,512]."
    )
    parser = argparse.ArgumentParser(
        prog="unet",
        description="Train, evaluate and run U-Net segmentation models.",
        epilog=epilog,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"unet {version('unet')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int | None], text: str) -> argparse.ArgumentParser:
        result = subparsers.add_parser(name, help=text, description=text, epilog=epilog)
        result.allow_abbrev = False
        result.set_defaults(run=run)
        result.add_argument("--traceback", action="store_true", help="show where an error arose")
        if name != "info":
            result.add_argument("--overwrite", action="store_true", help="replace existing results")
        added.append(result)
        return result

    added: list[argparse.ArgumentParser] = []
    _add_train(command("train", commands.run_train, "train the model of a config"))
    _add_init(command("init", commands.run_init, "write a config for a folder of images and masks"))
    _add_check(command("check", commands.run_check, "read all data of a config; report errors"))
    _add_evaluate(command("evaluate", commands.run_evaluate, "score a checkpoint"))
    _add_predict(command("predict", commands.run_predict, "write masks for images"))
    _add_export(
        command("export", commands.run_export, "write a model to a file that runs without unet")
    )
    _add_info(command("info", commands.run_info, "show a checkpoint's config, scores and costs"))
    return parser, {
        option
        for subparser in added
        for action in subparser._actions  # argparse has no public list
        if action.nargs is None
        for option in action.option_strings
    }


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; see configs/")
    parser.add_argument(
        "--runs", metavar="DIR", help="folder of all runs (default: the setting runs)"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue the run; start it if it does not exist"
    )
    parser.add_argument(
        "--folds", choices=["all"], help="train a model for each fold of data.validation.folds"
    )


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of images and masks")
    _add_out(parser, "YAML file to write", metavar="FILE", required=True)


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--pictures", type=Path, metavar="FILE", help="draw samples and augmentations as this PNG"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_checkpoints(parser, "best.pt or last.pt; the probabilities of several are averaged")
    parser.add_argument(
        "--images", metavar="DIR", help="score this folder or pattern, not the validation split"
    )
    parser.add_argument("--masks", metavar="DIR", help="masks of --images")
    parser.add_argument("--labels", metavar="DIR", help="label images of --images, for --instances")
    _add_out(parser, "folder of the report (default: evaluation_NAME next to NAME.pt)")
    parser.add_argument(
        "--boundary",
        type=float,
        default=2.0,
        metavar="PIXELS",
        help="largest distance at which a boundary pixel is a match (default: 2)",
    )
    parser.add_argument(
        "--instances",
        nargs="?",
        const=True,
        metavar="CLASS",
        help="also score the objects of a class (default: the second of two); the true objects "
        "come from label images, or else are the connected components of the mask",
    )
    parser.add_argument(
        "--threshold",
        action="store_true",
        help="also compute precision and recall at every threshold, for models of two classes",
    )
    _add_tta(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="CHECKPOINT [CHECKPOINT ...] IMAGES",
        help="checkpoints, whose probabilities are averaged; then image files, folders or glob "
        "patterns",
    )
    _add_out(parser, "folder of the masks", required=True)
    parser.add_argument("--overlay", action="store_true", help="also draw each mask over its image")
    parser.add_argument(
        "--probabilities", action="store_true", help="also write a TIFF with a page for each class"
    )
    parser.add_argument(
        "--instances", action="store_true", help="also write a label image of the objects"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="choose the second of two classes where its probability is at least P",
    )
    parser.add_argument(
        "--min-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="replace smaller objects by the first class, the background",
    )
    parser.add_argument(
        "--keep-largest", action="store_true", help="keep only the largest object of each class"
    )
    parser.add_argument(
        "--windows",
        action=argparse.BooleanOptionalAction,
        help="read TIFFs in windows (default: those with a georeference or nodata, BigTIFFs, and "
        "those above 64 megapixels)",
    )
    _add_tta(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_checkpoints(parser, "best.pt or last.pt")
    _add_out(
        parser,
        "model.onnx (needs the extra onnx) or model.pt2 (torch.export)",
        metavar="FILE",
        required=True,
    )
    parser.add_argument(
        "--output",
        choices=["probabilities", "classes"],
        default="probabilities",
        help="probabilities of every class, or ids of the most probable one (default: %(default)s)",
    )


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt or last.pt")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="image size to count operations for (default: the training crop, or 512 512)",
    )


def _add_checkpoints(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=text)


def _add_out(parser: argparse.ArgumentParser, text: str, **settings: Any) -> None:
    options = {"type": Path, "metavar": "DIR", **settings}
    parser.add_argument("-o", "--out", help=text, **options)


def _add_tta(parser: argparse.ArgumentParser) -> None:
    def names(text: str) -> list[str]:
        if not set(text.split(",")) <= set(_TTA):
            raise argparse.ArgumentTypeError(
                f"got {text}, expected one or more of {', '.join(_TTA)}, such as flips,turns"
            )
        return text.split(",")

    parser.add_argument(
        "--tta",
        type=names,
        action="extend",
        default=[],
        metavar="NAMES",
        help="test-time augmentation, such as flips,turns: average the probabilities over 4 "
        "flips, 4 quarter turns (8 images with both) or 3 scales",
    )
