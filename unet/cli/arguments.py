"""Docstring to be written."""

import argparse
from importlib.metadata import version
from pathlib import Path

from unet.cli.commands import (
    run_check,
    run_evaluate,
    run_export,
    run_info,
    run_init,
    run_predict,
    run_train,
)


def _kinds(text: str) -> list[str]:
    """The kinds of --tta."""
    kinds, known = text.split(","), ("flips", "turns", "scales")
    if not set(kinds) <= set(known):
        raise argparse.ArgumentTypeError(
            f"got {text}, expected one or more of {', '.join(known)}, such as flips,turns"
        )
    return kinds


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    settings = (
        "Settings of the config are changed by KEY=VALUE anywhere on the command line, such as "
        "train.epochs=5, data.root=my/data or tiling.size=[512,512]."
    )
    result = argparse.ArgumentParser(
        prog="unet",
        description="Train, evaluate and run U-Net segmentation models.",
        epilog=settings,
    )
    result.add_argument("--version", action="version", version=f"unet {version('unet')}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--overwrite", action="store_true", help="replace results that exist")
    shared.add_argument("--traceback", action="store_true", help="show where an error arose")
    tta = argparse.ArgumentParser(add_help=False)
    tta.add_argument(
        "--tta",
        type=_kinds,
        action="extend",
        default=[],
        metavar="KINDS",
        help="test-time augmentation, such as flips,turns: average over 4 flips, 4 turns (8 with "
        "both), 3 scales",
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", parents=[shared], epilog=settings, help="train the model of a config file"
    )
    train.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, see configs/")
    train.add_argument(
        "--resume", action="store_true", help="continue the run from its last.pt, if there is one"
    )
    train.add_argument(
        "--folds", choices=["all"], help="train each of data.validation.folds in turn"
    )
    train.set_defaults(run=run_train)

    init = commands.add_parser(
        "init", parents=[shared], help="look at a folder of images and masks; write a config for it"
    )
    init.add_argument("folder", type=Path, metavar="DIR", help="folder of images and masks")
    init.add_argument(
        "-o", "--out", type=Path, metavar="FILE", required=True, help="YAML file to write"
    )
    init.set_defaults(run=run_init)

    check = commands.add_parser(
        "check", parents=[shared], epilog=settings, help="read all data of a config; report faults"
    )
    check.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, see configs/")
    check.add_argument(
        "--pictures", type=Path, metavar="FILE", help="draw samples, also augmented, as this PNG"
    )
    check.set_defaults(run=run_check)

    evaluate = commands.add_parser(
        "evaluate", parents=[shared, tta], epilog=settings, help="score a checkpoint"
    )
    evaluate.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="best.pt or last.pt; several are averaged",
    )
    evaluate.add_argument(
        "--images", metavar="DIR", help="score this folder or pattern, not the validation split"
    )
    evaluate.add_argument("--masks", metavar="DIR", help="the masks of --images")
    evaluate.add_argument(
        "--labels", metavar="DIR", help="the label images of --images, for --instances"
    )
    evaluate.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for report.html, metrics.json, per_image.csv and confusion.png (default: "
        "evaluation_<checkpoint> beside the checkpoint)",
    )
    evaluate.add_argument(
        "--boundary",
        type=float,
        default=2.0,
        metavar="PIXELS",
        help="distance within which a boundary counts as found (default: 2)",
    )
    evaluate.add_argument(
        "--instances",
        nargs="?",
        const="",
        metavar="CLASS",
        help="score the connected parts of a class (of two, the second) as objects, too; the true "
        "ones are those of label images (data.instances, --labels), or else parts of the mask",
    )
    evaluate.add_argument(
        "--threshold",
        action="store_true",
        help="precision and recall at every threshold, for models of two classes; with "
        "--instances the objects at thresholds, too",
    )
    evaluate.set_defaults(run=run_evaluate)

    predict = commands.add_parser(
        "predict", parents=[shared, tta], epilog=settings, help="write masks for images"
    )
    predict.add_argument(
        "paths",
        nargs="+",
        metavar="CHECKPOINT [CHECKPOINT ...] IMAGES",
        help="best.pt, last.pt or weights of Pytorch-UNet (several are averaged), then files, "
        "folders or glob patterns",
    )
    predict.add_argument(
        "-o", "--out", type=Path, metavar="DIR", required=True, help="folder for the masks"
    )
    predict.add_argument(
        "--overlay", action="store_true", help="draw each mask over its image, too"
    )
    predict.add_argument(
        "--probabilities", action="store_true", help="write them, too: a TIFF page for each class"
    )
    predict.add_argument(
        "--instances", action="store_true", help="number the objects of each mask, too"
    )
    predict.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="with two classes: the second is where its probability is at least P",
    )
    predict.add_argument(
        "--min-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="make objects smaller than this background, the first class",
    )
    predict.add_argument(
        "--keep-largest", action="store_true", help="keep the largest object of each class only"
    )
    predict.add_argument(
        "--windows",
        action=argparse.BooleanOptionalAction,
        help="read TIFFs window by window, or none (default: those with a georeference or nodata, "
        "BigTIFFs, and those of more than 64 megapixels)",
    )
    predict.set_defaults(run=run_predict)

    export = commands.add_parser(
        "export", parents=[shared], help="write a model as a file that runs without unet"
    )
    export.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="a best.pt or last.pt"
    )
    export.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        required=True,
        help="model.onnx (extra onnx) or model.pt2 (torch.export)",
    )
    export.add_argument(
        "--output",
        choices=["probabilities", "classes"],
        default="probabilities",
        help="of every class, or the id of the most probable one (default: %(default)s)",
    )
    export.set_defaults(run=run_export)

    info = commands.add_parser(
        "info", epilog=settings, help="show a checkpoint's config, scores and costs"
    )
    info.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt or last.pt")
    info.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width to count for (default: the training crop, or 512 512)",
    )
    info.add_argument("--traceback", action="store_true", help="show where an error arose")
    info.set_defaults(run=run_info)
    return result
