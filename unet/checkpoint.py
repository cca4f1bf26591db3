"""The checkpoint file: its format, written, read and checked."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from unet.config.data_schema import AboveZero, Colour, Count, NotNegative, Positive
from unet.config.loader import config_from_dict
from unet.config.parsing import Range, describe_value, parse_section
from unet.config.schema import Config
from unet.runtime.files import DamagedFileError, atomic_path, load_torch_file, no_such

FORMAT, VERSION = "unet checkpoint", 6


@dataclass(frozen=True, kw_only=True)
class _Normalization:
    method: Literal["given", "image", "percentiles"]
    mean: tuple[float, ...]
    std: tuple[AboveZero, ...]


@dataclass(frozen=True, kw_only=True)
class _ImageRange:
    dtypes: tuple[str, ...]
    mean: tuple[float, float]
    std: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Progress:
    step: Count
    loss_sum: float
    skipped: Count
    seconds: NotNegative


@dataclass(frozen=True, kw_only=True)
class _Identity:
    train_stems: tuple[str, ...]
    val_stems: tuple[str, ...]
    data: str
    dtype: Literal["float32", "bfloat16", "float16"]
    world_size: Positive


@dataclass(frozen=True, kw_only=True)
class _Scaler:
    scale: AboveZero
    growth_factor: AboveZero
    backoff_factor: AboveZero
    growth_interval: Positive
    _growth_tracker: Count


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A threshold at which few pixels of a class are missed in 95 % of images."""

    class_id: Count
    threshold: Annotated[float, Range(0, 1)]  # of the class are pixels of at least this probability
    images: Positive  # with the class, on which it rests


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `unet calibrate` adds to a checkpoint.

    Args:
        temperature: the logits are divided by it.
        source: the images that it was fitted on.
        errors: expected calibration error on these images, before and after.
        max_missed: largest fraction of the pixels of a class that may be missed; None without
            promises.
        promises: at most one for each class.
    """

    temperature: AboveZero
    source: str
    errors: tuple[float, float]
    max_missed: Annotated[float, Range(0, 1)] | None = None
    promises: tuple[Promise, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"temperature {self.temperature:.4g}, fitted on {self.source}; expected calibration "
            f"error {self.errors[0]:.4f} before, {self.errors[1]:.4f} after",
            *(
                f"class {one.class_id} from a probability of {one.threshold:g}: in 95 % of images "
                f"at most {self.max_missed:.4g} of its pixels are missed, by {one.images} images"
                for one in self.promises
            ),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """The plain values of a checkpoint; those of the training state only in a last.pt."""

    normalization: _Normalization
    image_range: _ImageRange | None
    val_stems: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    calibration: Calibration | None = None
    progress: _Progress | None = None
    identity: _Identity | None = None
    scaler: _Scaler | None = None


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
_TRAINING_STATE = ("optimizer", "scaler", "progress", "identity")
_SCORES = ("mean_iou", "mean_dice", "pixel_accuracy")


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        contents: config, normalization, image_range, val_stems, palette and model, as
            `Predictor.contents` returns them; a training run adds optimizer, scaler, progress ...
    """
    contents = {"format": FORMAT, "version": VERSION, **contents}
    # Python writes the file: its errors hold the system's message, torch's own do not.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # torch fails to close its archive on a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def find_checkpoint(path: str | Path) -> Path:
    """Return the best.pt of a run's folder, or the path of any other file as it is.

    Raises:
        FileNotFoundError: if a folder has no best.pt.
        TypeError: if it is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"checkpoint: got {type(path).__name__}, expected a path")
    path = Path(path)
    if not path.is_dir():
        return path
    best, last = path / "best.pt", path / "last.pt"
    if not best.exists():
        advice = f"give {last}" if last.exists() else "give a checkpoint or the folder of a run"
        raise FileNotFoundError(f"{path}: there is no best.pt in this folder; {advice}")
    return best


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or the best.pt of a folder, to the CPU, and check its contents.

    No code in the file is run. Whether its weights fit a network is checked on loading them.

    Raises:
        DamagedFileError: if the file is damaged, unsafe, or of another type.
        FileNotFoundError: if it does not exist.
        ValueError: if it is no checkpoint, of another format version, or has wrong contents.
    """
    path = find_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(no_such(path, "checkpoint"))
    try:
        contents = load_torch_file(path)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error}: take a best.pt or last.pt that 'unet train' wrote"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        advice = "take a best.pt or last.pt that 'unet train' wrote"
        if isinstance(contents, Mapping) and any(
            str(key).endswith("inc.double_conv.0.weight") for key in contents
        ):
            advice = (
                "it holds weights of Pytorch-UNet: convert them with "
                f"scripts/convert_pytorch_unet.py {path} -o checkpoint.pt"
            )
        raise ValueError(f"{path}: is not a checkpoint of unet; {advice}")
    check_contents(contents, path)
    if errors := [*_errors_in_tensors(contents)]:
        raise _wrong(path, errors)
    return contents


def check_contents(contents: Mapping[str, Any], path: Path) -> None:
    """Check all of a checkpoint except its tensors: version, config and plain values.

    Raises:
        ValueError: if something is missing or wrong.
    """
    version = contents.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise ValueError(
            f"{path}: got a checkpoint of format version {describe_value(version)},"
            f" expected {VERSION}; use the version of unet that wrote it"
        )
    _check_structure(contents, path)
    raw = contents.get("config")
    if not isinstance(raw, Mapping):
        raise _wrong(path, [f"config: got {describe_value(raw)}, expected a section"])
    config = config_from_dict(raw, (), str(path))
    if errors := _errors_in_values(contents, config):
        raise _wrong(path, errors)


def restore_calibration(contents: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration in checked contents."""
    value = contents.get("calibration")
    return None if value is None else cast("Calibration", parse_section(Calibration, value, "", []))


def _wrong(path: Path, errors: Sequence[str]) -> ValueError:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ValueError(
        f"{path}: {errors[0]}{more}; the file was changed after training, take another checkpoint"
    )


def _check_structure(contents: Any, path: Path) -> None:
    """Refuse lists and dicts that hold others many times over, or themselves."""
    seen: set[int] = set()
    own = expanded = 0
    stack = [(contents, 0)]
    while stack:
        value, depth = stack.pop()
        if not isinstance(value, dict | list | tuple):
            continue
        expanded += 1 + len(value)
        if id(value) not in seen:
            seen.add(id(value))
            own += 1 + len(value)
        if depth > 20 or expanded > 1000 + 2 * own:
            raise _wrong(path, ["got lists that contain each other, expected plain values"])
        stack += [
            (item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)
        ]


def _errors_in_values(contents: Mapping[str, Any], config: Config) -> list[str]:
    """Check everything except config and tensors."""
    found: list[tuple[str, str]] = []
    values = {name: contents[name] for name in _Contents.__annotations__ if name in contents}
    if values.get("scaler") == {}:  # without float16
        values["scaler"] = None
    history = None
    if isinstance(progress := values.get("progress"), Mapping):
        values["progress"] = {key: progress[key] for key in progress if key != "history"}
        history = progress.get("history")
    parsed = parse_section(_Contents, values, "", found)
    errors = [f"{place}: {problem}" for place, problem in found]
    needed = _TRAINING_STATE if "optimizer" in contents else contents.keys() & {*_TRAINING_STATE}
    errors += [f"{one}: missing" for one in needed if contents.get(one) is None]
    if errors:
        return errors
    for name in ("normalization", "progress", "scaler"):
        for key, value in vars(getattr(parsed, name)).items() if values.get(name) else ():
            raw = values[name][key]
            if value != (tuple(raw) if isinstance(raw, list) else raw):  # the config takes 1e-4
                errors.append(f"{name}.{key}: got a text, expected numbers")
    normalization, channels = parsed.normalization, config.model.in_channels
    count = channels if normalization.method == "given" else 0
    for name in ("mean", "std"):
        if (got := len(getattr(normalization, name))) != count:
            errors.append(f"normalization.{name}: got {got} numbers, expected {count}")
    if parsed.calibration is not None:
        ids = [promise.class_id for promise in parsed.calibration.promises]
        if len({*ids}) < len(ids) or max(ids, default=0) >= len(config.data.classes):
            errors.append(f"calibration.promises: got classes {ids}, expected different ids")
        if ids and parsed.calibration.max_missed is None:
            errors.append("calibration.max_missed: missing, but there are promises")
    if parsed.progress is not None:
        errors += _errors_in_history(history, parsed.progress.step, config)
    return errors


def _errors_in_history(history: Any, step: int, config: Config) -> list[str]:
    """Check the rows of metrics.csv, whose scores may be NaN."""
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        return [f"progress.history: got {describe_value(history)}, expected a list of rows"]
    classes = [f"{score}_{name}" for score in ("iou", "dice") for name in config.data.classes]
    counts = ("epoch", "step", "skipped_steps")
    expected = {"lr", "train_loss", "seconds", *counts}
    if not config.data.validation.none:
        expected |= {"val_loss", *_SCORES, *classes, config.train.monitor}
    optional = {"val_loss"}  # runs had none at first
    if config.train.ema_decay is not None:
        optional.add(f"raw_{config.train.monitor}")
    before = 0
    for i, row in enumerate(history):
        if differing := (expected ^ row.keys()) - optional:
            return [f"progress.history[{i}]: {min(map(str, differing))} is missing or unknown"]
        for key, value in row.items():
            kind = int if key in counts else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind):
                got = describe_value(value)
                return [f"progress.history[{i}].{key}: got {got}, expected a number"]
        if not before < row["step"] <= step:
            return [f"progress.history[{i}].step: got {row['step']}, expected {before} to {step}"]
        before = row["step"]
    return []


def _errors_in_tensors(contents: Mapping[str, Any]) -> Iterator[str]:
    """Check that weights and the state of the optimizer are tensors of finite numbers."""
    for name in ("model", "raw_model"):
        weights = contents.get(name)
        if name == "raw_model" and name not in contents:
            continue
        if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
            yield f"{name}: got {describe_value(weights)}, expected weights by name"
            continue
        for key, one in weights.items():
            yield from _errors_in_tensor(f"{name}: {key}", one)
    if "optimizer" in contents:
        optimizer = contents["optimizer"]
        state = optimizer.get("state") if isinstance(optimizer, dict) else None
        if not isinstance(state, dict) or not all(isinstance(one, dict) for one in state.values()):
            yield "optimizer: got no state by parameter, expected the state of an optimizer"
            return
        for index, moments in state.items():
            for key, one in moments.items():
                yield from _errors_in_tensor(f"optimizer: {key} of parameter {index}", one)


def _errors_in_tensor(name: str, value: Any) -> Iterator[str]:
    if not _is_plain_tensor(value):
        yield f"{name}: got {describe_value(value)}, expected a tensor"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        yield f"{name}: got a tensor of {value.numel()} numbers, and fewer are in the file"
    elif not bool(value.isfinite().all()):
        yield f"{name}: got NaN or infinity, expected finite numbers"


def _is_plain_tensor(value: Any) -> bool:
    if type(value) not in (Tensor, Parameter) or value.is_meta or value.is_nested:
        return False
    return value.layout == torch.strided and value.dtype in _DTYPES
