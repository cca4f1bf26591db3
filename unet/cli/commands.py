"""What each command does. Torch is imported only by the commands that need it."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import takewhile
from pathlib import Path

import yaml

from unet.cli.terminal import print_error
from unet.config.loader import config_from_dict, load_config, load_yaml
from unet.config.schema import Config
from unet.config.values import configs_of_folds
from unet.runtime.text import format_table, plural


def run_train(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Train one model, or one for each fold and seed."""
    minutes = 1.0 if arguments.quick else arguments.minutes
    if minutes is not None:
        settings = [*settings, f"train.minutes={minutes}"]
    proposal = None
    if _holds_data(arguments.config):
        config, proposal = _propose_config(arguments, settings, minutes)
    else:
        config = load_config_file(arguments, settings)
    from unet.training.series import train_series
    from unet.training.train import train

    options = {"resume": arguments.resume, "overwrite": arguments.overwrite, "proposal": proposal}
    if arguments.folds or config.train.seeds > 1:
        train_series(config, all_folds=arguments.folds == "all", **options)
    else:
        train(config, **options)


def _holds_data(path: Path) -> bool:
    """Whether a path is a folder, and neither that of a run nor one of configs."""
    return path.is_dir() and not any([*path.glob("*.yaml"), *path.glob("*.yml")])


def _propose_config(
    arguments: argparse.Namespace, settings: Sequence[str], minutes: float | None
) -> tuple[Config, str]:
    """Return the config for a folder of images and masks, and its text as `unet init` writes it."""
    from unet.inspection.propose import propose
    from unet.inspection.propose_training import MINUTES

    name = _name_of(arguments.config)
    text = propose(arguments.config, name, minutes=MINUTES if minutes is None else minutes)
    raw = {"name": name, **yaml.safe_load(text)}
    config = config_from_dict(raw, settings, where=str(arguments.config))
    run = Path(config.runs if arguments.runs is None else arguments.runs, config.name)
    known = run / "proposed.yaml"
    if arguments.resume and known.is_file():  # this machine may propose something else now
        text = known.read_text(encoding="utf-8")
        config = config_from_dict({"name": name, **load_yaml(text)}, settings, where=str(known))
    print(f"{arguments.config}: no config given; this one is used and kept as {known}:\n\n{text}")
    return replace(config, runs=str(run.parent)), text


def _name_of(folder: Path) -> str:
    return re.sub(r"[^\w.+-]+", "_", folder.resolve().name).strip(".") or "mine"


def run_init(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Write a config for a folder of images and masks."""
    if settings:
        raise ValueError(f"init: got {' '.join(settings)}; change settings in the config it writes")
    folder: Path = arguments.folder
    out: Path = arguments.out or Path("configs", f"{_name_of(folder)}.yaml")
    _refuse_existing(out, arguments, "or another -o FILE")
    from unet.inspection.propose import propose

    _write_config(out, propose(folder, out.stem))
    print(f"wrote {out}; read it, then:\n  unet check {out}\n  unet train {out}")


def run_import(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Write masks and a config for annotations of other tools."""
    if settings:
        raise ValueError(f"import: got {' '.join(settings)}; change settings in the config")
    out: Path = arguments.out
    config = Path("configs", f"{_name_of(out)}.yaml")
    _refuse_existing(config, arguments, "or another -o DIR")
    from unet.data.annotations.importing import import_annotations
    from unet.data.annotations.target import source_folder
    from unet.inspection.propose import propose

    source: Path = arguments.annotations
    imported = import_annotations(
        source,
        arguments.images or source_folder(source),
        out,
        order=arguments.order,
        empty=arguments.empty,
        instances=arguments.instances,
        overwrite=arguments.overwrite,
    )
    for note in imported.notes:
        print(f"note: {note}")
    for warning in imported.warnings:
        print(f"warning: {warning}")
    _write_config(config, propose(out, config.stem))
    print(f"read {imported.format}: {plural(imported.num_images, 'image')}\n")
    print(f"{format_table(imported.table())}\n")
    print(f"wrote {out} and {config}; next:\n  unet check {config}\n  unet train {config}")


def run_check(arguments: argparse.Namespace, settings: Sequence[str]) -> int:
    """Describe the data of a config; return 1 if there are errors."""
    config = load_config_file(arguments, settings)
    picture: Path | None = arguments.pictures
    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise ValueError(f"{picture}: expected a name that ends in .png for --pictures")
        _refuse_existing(picture, arguments)
    from unet.inspection.check import check_data, describe
    from unet.inspection.samples import draw_samples

    warnings, errors = [], []
    configs = configs_of_folds(config) if arguments.folds else [config]
    for i, one in enumerate(configs):
        try:
            data = check_data(one)
        except (ValueError, FileNotFoundError) as error:  # there is nothing to read at all
            print_error(f"error: {error}\n1 error found")
            return 1
        if summary := describe(one, data):
            print(f"fold {i}:\n{summary}" if arguments.folds else summary)
        warnings.append(data.warnings)
        errors.append(data.errors)
        if i == 0 and picture is not None and len(data.train_pairs):
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw_samples(one, data, picture)
            print(f"wrote {picture}")
    for warning in _of_all_folds(warnings):
        print(f"warning: {warning}")
    messages = _of_all_folds(errors)
    if not messages:
        from unet.training.train import estimate_duration

        try:
            print(estimate_duration(one, data))
        except ValueError as error:
            print(f"note: no training is possible on this machine: {error}")
        print("no errors found")
        return 0
    for message in messages:
        print_error(f"error: {message}")
    print_error(f"{plural(len(messages), 'error')} found")
    return 1


def _of_all_folds(messages: Sequence[Sequence[str]]) -> list[str]:
    """Return the messages of each fold once; those that only some folds have name them."""
    folds: dict[str, list[str]] = {}
    for i, found in enumerate(messages):
        for message in dict.fromkeys(found):
            folds.setdefault(message, []).append(str(i))
    return [
        message if len(where) == len(messages) else f"fold {', '.join(where)}: {message}"
        for message, where in folds.items()
    ]


def run_evaluate(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Score a checkpoint and print the scores, even if they cannot be written."""
    from unet.evaluation.evaluate import evaluate
    from unet.evaluation.results import UnwrittenError
    from unet.runtime.device import memory_advice

    checkpoints = [*map(_find_checkpoint, arguments.checkpoints)]
    if len(checkpoints) > 1 and arguments.out is None:
        raise ValueError("evaluate: got several checkpoints, expected a folder for the scores: -o")
    out = arguments.out or checkpoints[0].parent / f"evaluation_{checkpoints[0].stem}"
    try:
        with memory_advice(_SMALLER_TILES):
            scores = evaluate(
                checkpoints,
                images=arguments.images,
                masks=arguments.masks,
                label_images=arguments.labels,
                boundary_tolerance=arguments.boundary,
                objects=arguments.instances or False,
                thresholds=arguments.threshold,
                tta=arguments.tta,
                overrides=settings,
                out=out,
                overwrite=arguments.overwrite,
            )
    except UnwrittenError as error:
        print(f"{error.scores}\n")
        raise
    print(f"{scores}\n")
    print(f"wrote {out / 'report.html'}, and next to it metrics.json and tables")


def run_predict(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Write masks for images."""
    from unet.inference.predict import OptionError, Options, predict_files
    from unet.runtime.device import memory_advice

    checkpoints = [*map(_find_checkpoint, takewhile(is_checkpoint, arguments.paths))]
    images = arguments.paths[len(checkpoints) :]
    if not checkpoints:
        raise ValueError(
            f"{images[0]}: is neither a checkpoint (.pt, .pth or .onnx) nor the folder of a run; "
            "give one before the images, for example: unet predict runs/mine/best.pt images/"
        )
    if not images:
        raise ValueError(
            f"predict: got no images; add them, for example: unet predict {checkpoints[-1]} images/"
        )
    try:
        given = {field.name: getattr(arguments, field.name) for field in fields(Options)}
        options = Options(**given | {"tta": tuple(arguments.tta)})
        with memory_advice(_SMALLER_TILES):
            predict_files(
                checkpoints,
                images,
                arguments.out,
                options,
                overwrite=arguments.overwrite,
                overrides=settings,
            )
    except OptionError as error:
        raise ValueError(f"--{error.option.replace('_', '-')}: {error.reason}") from error


def run_export(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Write a model to a file that runs without this project."""
    checkpoints = [*map(_find_checkpoint, arguments.checkpoints)]
    if len(checkpoints) > 1:
        raise ValueError(
            f"export: got {len(checkpoints)} checkpoints, expected one; export each, and average "
            "their probabilities"
        )
    out: Path = arguments.out
    choices = (checkpoints[0], out, arguments.output, arguments.overwrite)
    if arguments.int8:
        from unet.evaluation.quantize import export_int8

        max_loss = {} if arguments.max_loss is None else {"max_loss": arguments.max_loss}
        quantized = export_int8(*choices, overrides=settings, **max_loss)
        print(f"wrote {out} in INT8: {quantized}")
        return
    if arguments.max_loss is not None:
        raise ValueError("export: got --max-loss without --int8, expected both or neither")
    from unet.inference.export import TOLERANCE, export

    difference = export(*choices, overrides=settings)
    compared = {
        "probabilities": "probabilities differ from the model's",
        "classes": "classes are less probable than the model's",
    }[arguments.output]
    print(
        f"wrote {out}; at three sizes its {compared} by at most {difference:.1e} (allowed: "
        f"{TOLERANCE:.0e})"
    )


def run_info(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Describe a checkpoint."""
    from unet.inference.info import describe_checkpoint

    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    print(describe_checkpoint(_find_checkpoint(arguments.checkpoint), size, settings))


def _write_config(path: Path, text: str) -> None:
    from unet.runtime.files import atomic_path

    config_from_dict({"name": path.stem, **yaml.safe_load(text)}, where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_SMALLER_TILES = "use smaller images or a lower tiling.size"


_CHECKPOINT = (".pt", ".pth", ".onnx")  # no image has such a name


def is_checkpoint(word: str) -> bool:
    """Whether a word names a checkpoint or the folder of a run."""
    names = ("best.pt", "last.pt", "config.yaml")
    return word.endswith(_CHECKPOINT) or any(Path(word, name).exists() for name in names)


def _find_checkpoint(word: str) -> Path:
    """Return a checkpoint; for the folder of a run its best.pt."""
    from unet.checkpoint import find_checkpoint

    if (path := find_checkpoint(word)) != Path(word):
        print(f"note: using {path}")
    return path


def load_config_file(arguments: argparse.Namespace, settings: Sequence[str]) -> Config:
    """Load the config that a command was given, with --runs."""
    path: Path = arguments.config
    if path.suffix in _CHECKPOINT:
        advice = f"give the config of its run, such as {path.parent / 'config.yaml'}"
        raise ValueError(f"{path}: is a checkpoint, expected a config file; {advice}")
    if path.is_dir():
        configs = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        advice = f"write one with: unet init {path}"
        if (path / "config.yaml").is_file():
            advice = f"continue this run with: unet train {path / 'config.yaml'} --resume"
        elif configs:
            advice = f"give one of those in it, such as {configs[0]}"
        raise ValueError(f"{path}: is a folder, expected a config file; {advice}")
    config = load_config(path, settings)
    return config if arguments.runs is None else replace(config, runs=arguments.runs)


def _refuse_existing(path: Path, arguments: argparse.Namespace, other: str = "") -> None:
    if path.exists() and not arguments.overwrite:
        ways = ", ".join(filter(None, ["pass --overwrite to replace it", other]))
        raise FileExistsError(f"{path}: exists; {ways}")
