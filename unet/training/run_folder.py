"""The folder of a run: created, locked, resumed, and its last checkpoint."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.config.data_schema import MayChange
from unet.config.loader import config_from_dict
from unet.config.schema import Config
from unet.config.values import changed_settings, config_to_dict
from unet.runtime import distributed
from unet.runtime.files import DamagedFileError, flush_folder
from unet.runtime.text import plural

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


PROPOSAL = "proposed.yaml"
"""The config that was written for a folder of images and masks, with its comments."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Raise FileExistsError if another process of this machine is training the run."""

    def lock() -> None:
        run.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((run.parent / f".{run.name}.lock").open("w"))
        try:
            # Processes that load samples do not inherit this type of lock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FileExistsError(
                f"{run}: is being trained by another process; wait for its end, or use name=OTHER"
            ) from None

    with ExitStack() as stack:
        if fcntl is not None:
            distributed.on_first_rank(lock)()
        yield


@distributed.on_first_rank
def find_state(
    run: Path, config: Config, resume: bool, overwrite: bool
) -> tuple[Config, dict[str, Any] | None]:
    """Return the config and the training state to resume from; None for a new run.

    A run keeps the steps of `train.minutes` and the precision that were chosen at its start.
    For errors see `train`.
    """
    if resume and overwrite:
        raise ValueError("train: got resume=True and overwrite=True, expected one of them")
    resume = resume or _is_restarted(run)
    if not run.exists():
        if resume:
            print(f"{run}: does not exist yet; starting a new run")
        return config, None
    if not resume and not overwrite:
        raise FileExistsError(
            f"{run}: exists; pass resume=True to continue it, overwrite=True to delete it and "
            "start again, or name=OTHER for another run"
        )
    if not resume or (last := _load_last(run)) is None:
        return config, None
    path, state, damaged = last
    if "optimizer" not in state:
        raise ValueError(f"{path}: holds no training state; restore the last.pt of the run")
    before = config_from_dict(state["config"], where=str(path))
    config = _keep_choices(run, config, before)
    if changed := changed_settings(before, config, MayChange.ON_RESUME):
        raise ValueError(
            f"{path}: the run to resume had another config: {'; '.join(changed)}. Resume with the "
            f"same config{_same_parts(before)}, or start another run from its weights: name=OTHER "
            f"train.init_from={path}"
        )
    if config.train.ema_decay is not None and "raw_model" not in state:
        raise ValueError(f"{path}: raw_model: missing; restore the last.pt of the run")
    for other in damaged:
        print(f"warning: {other}: is damaged, and deleted; resuming from {path}")
        other.unlink()  # otherwise it would become previous.pt
    return config, state


def _same_parts(before: Config) -> str:
    parts = [f"{name}={value}" for name, value in vars(before.custom).items() if value is not None]
    return f" and {', '.join(parts)}" if parts else ""


def _load_last(run: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """Load the newest checkpoint that is not damaged; also return the damaged ones."""
    damaged: dict[Path, str] = {}
    # next.pt exists, complete, only if the run was killed while it replaced last.pt.
    for path in filter(Path.exists, (run / "next.pt", run / "last.pt", run / "previous.pt")):
        try:
            return path, load_checkpoint(path), list(damaged)
        except DamagedFileError as error:
            damaged[path] = str(error)
    if damaged:
        raise ValueError("\n".join([*damaged.values(), f"{run}: start again with overwrite=True"]))
    if (run / "best.pt").exists():
        raise FileExistsError(
            f"{run}: holds a best.pt, but no last.pt or previous.pt to resume from; restore one, "
            "pass overwrite=True to delete the run and start again, or start another run from its "
            f"weights: name=OTHER train.init_from={run / 'best.pt'}"
        )
    print(f"{run}: was stopped before its first checkpoint; starting it again")
    return None


def _keep_choices(run: Path, config: Config, before: Config) -> Config:
    train, chosen = config.train, before.train
    if train.precision == "auto":
        train = replace(train, precision=chosen.precision)
    if train.minutes is None:
        return replace(config, train=train)
    print(f"note: {run}: keeps the number of steps that was chosen at its start")
    names = "minutes", "epochs", "steps_per_epoch", "validate_every"
    train = replace(train, **{name: getattr(chosen, name) for name in names})
    return replace(config, train=train, schedule=before.schedule)


@distributed.on_first_rank
def check_same(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare `Trainer.identity`: a run is resumed with the data and dtype it was started with."""
    restore = "restore them, or start another run with name=OTHER"
    for key, name in (("train_stems", "training"), ("val_stems", "validation")):
        if before[key] != now[key]:
            raise ValueError(
                f"{run}: the run to resume had other {name} images ({len(before[key])}, now "
                f"{len(now[key])}); {restore}"
            )
    if before["data"] != now["data"]:
        raise ValueError(
            f"{run}: images, masks or label images have changed since the run was started; "
            f"{restore}"
        )
    if before["dtype"] != now["dtype"]:
        raise ValueError(
            f"{run}: the run to resume computed in {before['dtype']}, this one would in "
            f"{now['dtype']}; pass train.precision={before['dtype']}"
        )
    if before["world_size"] != now["world_size"]:
        print(
            f"note: the run had {plural(before['world_size'], 'process', 'processes')} and now has "
            f"{now['world_size']}: results stay the same except for rounding, batch norm and "
            "dropout"
        )


@distributed.on_first_rank
def prepare_folder(
    run: Path, config: Config, is_resumed: bool, proposal: str | None = None
) -> None:
    """Create the folder, replacing an old one; in a resumed run, delete incomplete files.

    `proposal` is the text of a config to keep next to config.yaml.
    """
    if is_resumed:
        for path in run.rglob(".*.tmp"):
            path.unlink()
    else:
        if run.exists() and not (run / "config.yaml").is_file():
            raise FileExistsError(
                f"{run}: holds no config.yaml and is not the folder of a run; remove it yourself "
                "or use name=OTHER"
            )
        # Folders are renamed when they are complete: half a run would neither resume nor be
        # replaced.
        new, old = (run.with_name(f".{run.name}.{ending}") for ending in ("tmp", "old"))
        for left_over in filter(Path.exists, (new, old)):
            shutil.rmtree(left_over)
        new.mkdir(parents=True)
        text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
        (new / "config.yaml").write_text(text, encoding="utf-8")
        if proposal is not None:
            (new / PROPOSAL).write_text(proposal, encoding="utf-8")
        if run.exists():
            run.rename(old)
        new.rename(run)
        if old.exists():
            shutil.rmtree(old)
    if (mark := _torchrun_mark()) is not None:
        (run / ".torchrun").write_text(mark)


def save_last(run: Path, contents: dict[str, Any]) -> None:
    """Write last.pt; the one before becomes previous.pt."""
    new, last = run / "next.pt", run / "last.pt"
    save_checkpoint(new, contents)
    if last.exists():
        last.replace(run / "previous.pt")
    new.replace(last)
    flush_folder(run)


def refuse_restarts(run: Path) -> None:
    """Keep torchrun's next attempt from resuming a run that cannot succeed."""
    (run / ".torchrun").unlink(missing_ok=True)


def _is_restarted(run: Path) -> bool:
    """Whether this torchrun has started the run before, and now restarts its processes."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    mark, file = _torchrun_mark(), run / ".torchrun"
    return mark is not None and restarts > 0 and file.is_file() and file.read_text() == mark


def _torchrun_mark() -> str | None:
    """Return an id of the torchrun command, the same after a restart of its processes."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run_id is None else f"{run_id} {os.getppid()}"
