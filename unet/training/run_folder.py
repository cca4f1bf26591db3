"""The folder of a run: made, written to, found again, gone on with."""

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.config.data_schema import MayChange
from unet.config.loader import config_from_dict
from unet.config.schema import Config
from unet.config.values import changed_settings, config_to_dict
from unet.inference.predictor import Predictor
from unet.inspection.check import CheckedData
from unet.runtime.files import DamagedFileError, flush_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass
class Progress:
    """How far a run has come; together with the weights, all that the rest of it depends on.

    Args:
        step: updates made.
        loss_sum: of the steps since the last validation.
        skipped: steps that float16 had to skip.
        seconds: that the run has taken.
        history: a row for each validation.
    """

    step: int = 0
    loss_sum: float = 0.0
    skipped: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def validated(self) -> int:
        """The step of the last validation."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def scores(self) -> list[float]:
        """Of the validations, higher is better."""
        return [row["mean_iou"] for row in self.history]


def find_run(run: Path, config: Config, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Return the state that a run goes on from; None for its beginning.

    Raises:
        FileExistsError: if the run exists and is neither resumed nor overwritten.
        ValueError: if its checkpoints are damaged, or it had another config.
    """
    if resume and overwrite:
        raise ValueError("train: got --resume and --overwrite, expected one of them")
    if _launch_mark() is not None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        # A run that this very torchrun has begun, and now starts again, goes on.
        mark = run / ".torchrun"
        resume = resume or (mark.is_file() and mark.read_text() == _launch_mark())
    if not run.exists():
        if resume:
            print(f"{run}: there is no such run yet; it starts from the beginning")
        return None
    if resume:
        return _load_run(run, config)
    if not overwrite:
        raise FileExistsError(
            f"{run}: exists; pass --resume to continue it, --overwrite to delete it and start "
            "anew, or name=OTHER for another run"
        )
    return None


def _load_run(run: Path, config: Config) -> dict[str, Any] | None:
    """The state to resume from; the run must have had the same config."""
    state, faults = None, []
    # next.pt is there, and whole, only if the run was killed as it took the place of last.pt.
    for path in filter(Path.exists, (run / "next.pt", run / "last.pt", run / "previous.pt")):
        try:
            state = load_checkpoint(path)
            break
        except DamagedFileError as error:
            faults.append((path, str(error)))
    if state is None:
        if not faults:
            print(f"{run}: was stopped before its first checkpoint; it starts from the beginning")
            return None
        texts = [text for _, text in faults]
        raise ValueError("\n".join([*texts, f"{run}: start anew with --overwrite"]))
    if "optimizer" not in state:
        raise ValueError(f"{path}: holds no training state; restore the last.pt of the run")
    before = config_from_dict(state["config"], where=str(path))
    changed = changed_settings(before, config, MayChange.ON_RESUME)
    if changed:
        raise ValueError(
            f"{path}: the run to resume had another config: {'; '.join(changed)}. Resume with the "
            f"same, or start another run from its weights: name=OTHER train.init_from={path}"
        )
    for damaged, _ in faults:
        print(f"note: {damaged}: is damaged, and deleted; going on from the one before, {path}")
        damaged.unlink()  # or it would become the one before
    return state


def hold(run: Path, until: ExitStack) -> None:
    """Keep other processes from a run until the stack is closed.

    Raises:
        FileExistsError: if another process has it.
    """
    if fcntl is None:
        return
    run.parent.mkdir(parents=True, exist_ok=True)
    file = until.enter_context((run.parent / f".{run.name}.lock").open("w"))
    try:
        # Of the kind that processes which load samples do not inherit.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise FileExistsError(
            f"{run}: is being trained by another process; wait until it has ended, or take "
            "name=OTHER"
        ) from None


def make_folder(run: Path, config: Config, goes_on: bool) -> None:
    """Make the run's folder, whole or not at all, or clear up what a killed run left in it."""
    if goes_on:
        for path in run.rglob(".*.tmp"):
            path.unlink()
    else:
        if run.exists():
            _delete_run(run)
        new = run.with_name(f".{run.name}.tmp")
        if new.exists():
            shutil.rmtree(new)
        (new / "previews").mkdir(parents=True)
        text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
        (new / "config.yaml").write_text(text, encoding="utf-8")
        new.rename(run)
    if (mark := _launch_mark()) is not None:
        (run / ".torchrun").write_text(mark)


def _launch_mark() -> str | None:
    """What is the same in all that one torchrun starts, and starts again."""
    number = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if number is None else f"{number} {os.getppid()}"


def give_up(run: Path) -> None:
    """Let torchrun's next attempt at a run that cannot succeed end at once."""
    (run / ".torchrun").unlink(missing_ok=True)


def save_last(run: Path, model: Predictor, states: dict[str, Any]) -> None:
    """Write last.pt; the one before becomes previous.pt."""
    new, last = run / "next.pt", run / "last.pt"
    save_checkpoint(new, model.contents() | states)
    if last.exists():
        last.replace(run / "previous.pt")
    new.replace(last)
    flush_folder(run)


def _delete_run(run: Path) -> None:
    if not (run / "config.yaml").is_file():
        raise FileExistsError(
            f"{run}: holds no config.yaml and is no run's folder; remove it yourself or take "
            "name=OTHER"
        )
    shutil.rmtree(run)


def check_same(
    state: dict[str, Any],
    run: Path,
    dtype: torch.dtype,
    data: CheckedData,
) -> None:
    """A run resumes with the images and the dtype that it began with, or it would be another."""
    other = "restore them, or start another run with name=OTHER"
    for key, name, pairs in (
        ("train_stems", "training", data.train_pairs),
        ("val_stems", "validation", data.val_pairs),
    ):
        if state[key] != [pair.stem for pair in pairs]:
            raise ValueError(
                f"{run}: the run to resume had other {name} images ({len(state[key])}, now "
                f"{len(pairs)}); {other}"
            )
    if state["data"] != data.fingerprint:
        raise ValueError(
            f"{run}: images, masks or label images have changed since the run began; {other}"
        )
    if state["dtype"] != str(dtype):
        precision = state["dtype"].removeprefix("torch.")
        raise ValueError(
            f"{run}: the run to resume computed in {precision}, here it would be {dtype}; pass "
            f"train.precision={precision}"
        )
