"""The `unet` command. Torch is imported only once there is work for it."""

import argparse
import errno
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from types import FrameType

import yaml

from unet.config_file import config_from_dict, load_config

# What a setting looks like: train.epochs=5, but neither --out=masks nor runs/lr=0.1/best.pt.
_SETTING = re.compile(r"\w+(\.[^=/\\]+)*=")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What gloo and nccl say when the process at the other end is gone.
_LOST_PROCESS = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|remote process exited|NCCL error", re.IGNORECASE
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 faults found by check or images not predicted, 2 wrong input, 130 and 143 interrupted.
    """
    rank = os.environ.get("RANK", "0")
    who = f"process {rank}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    if rank != "0":  # the first process speaks for all
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _hear_thread
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line as it comes
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file, we say
    # Settings may stand anywhere among the other arguments.
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if _SETTING.match(word) and not Path(word).exists()]
    command_line = parser()
    arguments, unknown = command_line.parse_known_args(
        [word for word in words if word not in overrides]
    )
    if arguments.run is _predict:  # whose images may stand behind options
        arguments.paths += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        command_line.error(
            f"got {' '.join(unknown)}, which means nothing here; settings are written KEY=VALUE, "
            "such as train.epochs=5"
        )
    try:
        return int(arguments.run(arguments, overrides) or 0)
    except BrokenPipeError:  # the reader left, as in `unet evaluate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        if arguments.traceback:
            traceback.print_exc()
        text = str(error).strip()
        if "DataLoader worker process" in text:
            text = _last_line(error)
        if isinstance(error, OSError) and error.strerror:  # the system's, not ours
            advice = "check the path, its rights and the space"
            if error.errno in _DISK_FULL and arguments.run is _train:
                advice = "make room; --resume goes on from the last checkpoint, if there is one"
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror}; {advice}"
        # What all processes meet, the first one says.
        if rank == "0" or (_has_joined() and not isinstance(error, FloatingPointError)):
            print(f"{who}error: {text}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except MemoryError as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"{who}error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if arguments.traceback:
            raise
        if who and _LOST_PROCESS.search(str(error)):
            text = "another process is gone, and with it this one; see what it said"
        elif killed := re.search(r"DataLoader worker \(pid.*", str(error)):
            text = f"{killed.group()}; lower train.num_workers or data.cache if memory ran out"
        elif "DataLoader worker process" in str(error):
            text = _last_line(error)
        else:
            from unet.device import OUT_OF_MEMORY

            if not OUT_OF_MEMORY.search(str(error)):
                raise
            advice = "take a smaller model.widths"
            if arguments.run is not _train:
                advice = "take smaller images, or a lower tiling.size"
            text = f"{str(error).strip().splitlines()[-1][:200]}; {advice}"
        print(f"{who}error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if rank == "0":
            print(str(error) or "interrupted", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)


def _last_line(error: Exception) -> str:
    """What a process that loads samples met; the lines before are the way there."""
    return str(error).strip().splitlines()[-1].partition(": ")[2]


def _has_joined() -> bool:
    """Whether this process works with others; of torch only if it was needed."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def _hear_thread(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of a full disk in TensorBoard's thread, which the main thread hears of, too."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End as after Ctrl-C, with what is half-written removed."""
    raise SystemExit(128 + signum)


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from unet.series import train_series
    from unet.training import train

    if arguments.folds or config.train.seeds > 1:
        all_folds = arguments.folds == "all"
        train_series(config, all_folds, resume=arguments.resume, overwrite=arguments.overwrite)
    else:
        train(config, resume=arguments.resume, overwrite=arguments.overwrite)


def _init(arguments: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise ValueError(f"init: got {' '.join(overrides)}, which a config is to hold; edit that")
    out: Path = arguments.out
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"{out}: exists; pass --overwrite to replace it, or another -o FILE")
    from unet.atomic import atomic_path
    from unet.proposal import propose

    text = propose(arguments.folder, out.stem)
    config_from_dict({"name": out.stem, **yaml.safe_load(text)}, where=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {out}; read it, then:\n  unet check {out}\n  unet train {out}")


def _check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    config = load_config(arguments.config, overrides)
    picture: Path | None = arguments.pictures
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(
            f"{picture}: expected a name that ends in .png; give --pictures such a one"
        )
    if picture is not None and picture.exists() and not arguments.overwrite:
        raise FileExistsError(f"{picture}: exists; pass --overwrite to replace it")
    from unet.check import check_data, describe, draw_samples

    try:
        data = check_data(config)
    except (ValueError, FileNotFoundError) as error:  # nothing to read at all: a fault as well
        print(f"error: {error}\n1 fault found", file=sys.stderr)
        return 1
    print(describe(data, list(config.data.classes)))
    for note in data.notes:
        print(f"note: {note}")
    if picture is not None and len(data.train_pairs):
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_samples(config, data, picture)
        print(f"wrote {picture}")
    if not data.faults:
        print("nothing is wrong")
        return 0
    for fault in data.faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(data.faults)} fault(s) found", file=sys.stderr)
    return 1


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from unet.evaluation import evaluate

    evaluate(
        arguments.checkpoints,
        overrides,
        images=arguments.images,
        masks=arguments.masks,
        labels=arguments.labels,
        out=arguments.out,
        overwrite=arguments.overwrite,
        boundary_distance=arguments.boundary,
        objects=arguments.instances,
        threshold=arguments.threshold,
        tta=arguments.tta,
    )


def _predict(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from unet.prediction import Options, predict_files

    # Images never end so.
    checkpoints = list(takewhile(lambda path: path.endswith((".pt", ".pth")), arguments.paths))
    inputs = arguments.paths[len(checkpoints) :]
    if not checkpoints or not inputs:
        raise ValueError(
            f"predict: got {' '.join(arguments.paths)}, expected a checkpoint (or several), which "
            "ends in .pt or .pth, and then images"
        )
    predict_files(
        [Path(path) for path in checkpoints],
        inputs,
        arguments.out,
        Options(
            tta=tuple(arguments.tta),
            threshold=arguments.threshold,
            min_size=arguments.min_size,
            keep_largest=arguments.keep_largest,
            overlay=arguments.overlay,
            probabilities=arguments.probabilities,
            instances=arguments.instances,
            windows=arguments.windows,
        ),
        overwrite=arguments.overwrite,
        overrides=overrides,
    )


def _export(arguments: argparse.Namespace, overrides: list[str]) -> None:
    # What may be said of weights of others; the rest is not in the file.
    parts = ("data.classes", "data.normalization")
    if left := [one for one in overrides if not one.startswith(parts)]:
        raise ValueError(f"export: got {' '.join(left)}; a trained model keeps its settings")
    from unet.export import TOLERANCE, export

    out: Path = arguments.out
    difference = export(
        arguments.checkpoints, out, arguments.output, arguments.overwrite, overrides
    )
    compared = {
        "probabilities": "probabilities differ from the model's",
        "classes": "classes are less probable than the model's",
    }[arguments.output]
    print(
        f"wrote {out}; at three sizes its {compared} by at most {difference:.1e} (allowed: "
        f"{TOLERANCE:.0e})"
    )


def _info(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from unet.info import describe_checkpoint

    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    print(describe_checkpoint(arguments.checkpoint, size, overrides))


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
    train.set_defaults(run=_train)

    init = commands.add_parser(
        "init", parents=[shared], help="look at a folder of images and masks; write a config for it"
    )
    init.add_argument("folder", type=Path, metavar="DIR", help="folder of images and masks")
    init.add_argument(
        "-o", "--out", type=Path, metavar="FILE", required=True, help="YAML file to write"
    )
    init.set_defaults(run=_init)

    check = commands.add_parser(
        "check", parents=[shared], epilog=settings, help="read all data of a config; report faults"
    )
    check.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, see configs/")
    check.add_argument(
        "--pictures", type=Path, metavar="FILE", help="draw samples, also augmented, as this PNG"
    )
    check.set_defaults(run=_check)

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
    evaluate.set_defaults(run=_evaluate)

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
    predict.set_defaults(run=_predict)

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
    export.set_defaults(run=_export)

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
    info.set_defaults(run=_info)
    return result
