"""Docstring to be written."""

import argparse
import sys
from itertools import takewhile
from pathlib import Path

import yaml

from unet.config.loader import config_from_dict, load_config


def run_train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from unet.training.series import train_series
    from unet.training.train import train

    if arguments.folds or config.train.seeds > 1:
        all_folds = arguments.folds == "all"
        train_series(config, all_folds, resume=arguments.resume, overwrite=arguments.overwrite)
    else:
        train(config, resume=arguments.resume, overwrite=arguments.overwrite)


def run_init(arguments: argparse.Namespace, overrides: list[str]) -> None:
    if overrides:
        raise ValueError(f"init: got {' '.join(overrides)}, which a config is to hold; edit that")
    out: Path = arguments.out
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"{out}: exists; pass --overwrite to replace it, or another -o FILE")
    from unet.inspection.propose import propose
    from unet.runtime.files import atomic_path

    text = propose(arguments.folder, out.stem)
    config_from_dict({"name": out.stem, **yaml.safe_load(text)}, where=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {out}; read it, then:\n  unet check {out}\n  unet train {out}")


def run_check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    config = load_config(arguments.config, overrides)
    picture: Path | None = arguments.pictures
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(
            f"{picture}: expected a name that ends in .png; give --pictures such a one"
        )
    if picture is not None and picture.exists() and not arguments.overwrite:
        raise FileExistsError(f"{picture}: exists; pass --overwrite to replace it")
    from unet.inspection.check import check_data, describe
    from unet.inspection.samples import draw_samples

    try:
        data = check_data(config)
    except (ValueError, FileNotFoundError) as error:  # there is nothing to read at all
        print(f"error: {error}\n1 error found", file=sys.stderr)
        return 1
    print(describe(config, data))
    for warning in data.warnings:
        print(f"warning: {warning}")
    if picture is not None and len(data.train_pairs):
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_samples(config, data, picture)
        print(f"wrote {picture}")
    if not data.errors:
        print("no errors found")
        return 0
    for message in data.errors:
        print(f"error: {message}", file=sys.stderr)
    print(f"{len(data.errors)} error(s) found", file=sys.stderr)
    return 1


def run_evaluate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from unet.evaluation.evaluate import evaluate

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


def run_predict(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from unet.inference.predict import Options, predict_files

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


def run_export(arguments: argparse.Namespace, overrides: list[str]) -> None:
    # What may be said of weights of others; the rest is not in the file.
    parts = ("data.classes", "data.normalization")
    if left := [one for one in overrides if not one.startswith(parts)]:
        raise ValueError(f"export: got {' '.join(left)}; a trained model keeps its settings")
    from unet.inference.export import TOLERANCE, export

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


def run_info(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from unet.inference.info import describe_checkpoint

    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    print(describe_checkpoint(arguments.checkpoint, size, overrides))
