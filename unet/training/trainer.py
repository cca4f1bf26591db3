"""The training loop: updates, validations and saves."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from unet.checkpoint import save_checkpoint
from unet.config.schema import Config, TrainConfig, warmup_epochs
from unet.data.dataset import SegmentationDataset
from unet.data.loader import load_samples, worker_errors
from unet.data.sampler import SeededBatchSampler
from unet.evaluation.scoring import PredictedImage, score_pairs
from unet.inference.predictor import Predictor
from unet.inspection.check import CheckedData
from unet.metrics.confusion import scores
from unet.metrics.monitor import monitored, score_columns
from unet.models.network import Network
from unet.models.unet import UNet
from unet.models.weights import incompatible_weights
from unet.runtime import distributed
from unet.runtime.device import memory_advice
from unet.runtime.progress import is_narrow
from unet.runtime.seeds import Stream
from unet.runtime.signals import Stopped, StopRequest, stop_request
from unet.runtime.text import format_list
from unet.training.logger import RunLogger
from unet.training.messages import not_finite, smaller_step, validation_text
from unet.training.run_folder import check_same, refuse_restarts, save_last
from unet.training.schedule import learning_rate_multiplier, validations_without_gain
from unet.training.step import TrainingStep, WeightAverage


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # number of updates
    loss_sum: float = 0.0  # since the last validation
    skipped: int = 0  # number of updates that float16 skipped
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of metrics.csv

    @property
    def validated(self) -> int:
        """The step of the last validation."""
        return int(self.history[-1]["step"]) if self.history else 0

    def state_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set all fields."""
        vars(self).update(state)


@dataclass(kw_only=True)
class Trainer:
    """The rest of a run, from its start or a checkpoint until it is finished.

    What it does next depends only on the config and the state, so that a resumed run equals an
    uninterrupted one.
    """

    run: Path  # folder of the run
    net: Network  # that is trained
    average: WeightAverage | None  # of its weights; None without `train.ema_decay`
    model: Predictor  # is validated and saved: with the network `average.net`, or else `net`
    training_step: TrainingStep  # updates `net`
    dataset: SegmentationDataset  # training samples
    data: CheckedData

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.stateful: dict[str, Any] = {
            "model": self.model.net,
            "optimizer": self.training_step.optimizer,
            "scaler": self.training_step.scaler,
            "progress": self.progress,
        }
        if self.average is not None:
            self.stateful["raw_model"] = self.net
        # A run must be resumed with these.
        self.identity = {
            "train_stems": [pair.stem for pair in self.data.train_pairs],
            "val_stems": [pair.stem for pair in self.data.val_pairs],
            "data": self.data.fingerprint,
            "dtype": str(self.training_step.dtype).removeprefix("torch."),
            "world_size": distributed.world_size(),
        }
        num_pairs = len(self.data.val_pairs)
        num_previews = min(self.settings.previews, num_pairs)
        # Evenly spaced, and the same ones at each validation.
        self.previews = [i * num_pairs // num_previews for i in range(num_previews)]

    @property
    def config(self) -> Config:
        """The config of the run."""
        return self.model.config

    @property
    def settings(self) -> TrainConfig:
        """The section train of the config."""
        return self.config.train

    @property
    def samples_per_step(self) -> int:
        """The number of samples of an update."""
        return self.settings.batch_size * self.settings.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """The number of updates in an epoch."""
        steps_per_pass = math.ceil(len(self.dataset) / self.samples_per_step)
        return self.settings.steps_per_epoch or steps_per_pass

    @property
    def num_steps(self) -> int:
        """The number of updates in the run; with `train.minutes` some, until they are planned."""
        return (self.settings.epochs or 12) * self.steps_per_epoch

    def resume(self, state: dict[str, Any]) -> None:
        """Load the state of a last.pt.

        Raises:
            ValueError: if the run was started with other data or another dtype, or if the state
                does not fit the run.
        """
        path = self.run / "last.pt"
        check_same(self.run, state["identity"], self.identity)
        step = state["progress"]["step"]
        if step > self.num_steps:
            raise ValueError(
                f"{path}: progress.step: got {step}, expected at most {self.num_steps}"
            )
        if self.training_step.scaler.is_enabled() and not state["scaler"]:
            raise ValueError(f"{path}: scaler: got nothing, expected the scale of float16")
        for name, component in self.stateful.items():
            if isinstance(component, nn.Module):
                own = component.state_dict()
                if wrong := incompatible_weights(state[name], own, own):
                    raise ValueError(f"{path}: {name} does not fit:\n{format_list(wrong, 3)}")
        self.training_step.check_moments(state["optimizer"]["state"], str(path))
        # The config decides everything about the optimizer except the current learning rates.
        groups = self.training_step.optimizer.state_dict()["param_groups"]
        saved = state["optimizer"].get("param_groups")
        rates = []
        if isinstance(saved, list):
            rates = [one.get("lr") for one in saved if isinstance(one, dict)]
        if len(rates) != len(groups) or not all(isinstance(rate, float) for rate in rates):
            raise ValueError(f"{path}: optimizer: got no learning rate for each of its groups")
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        state["optimizer"]["param_groups"] = groups
        for name, component in self.stateful.items():
            component.load_state_dict(state[name])

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the score has not improved for `train.patience`."""
        patience = self.settings.patience or math.inf
        is_done = self.progress.validated == self.num_steps
        return is_done or validations_without_gain(self._scores) >= patience

    def fit(self) -> None:
        """Train until the run is finished. For errors see `train`."""
        settings, progress = self.settings, self.progress
        self._start, self._saved = time.monotonic() - progress.seconds, time.monotonic()
        bar = tqdm(
            total=self.num_steps * self.samples_per_step,
            initial=progress.step * self.samples_per_step,
            unit=" images",
            bar_format="{desc} |{bar}| {remaining} left{postfix}"
            + ("" if is_narrow() else ", {rate_noinv_fmt}"),
            disable=distributed.disable_progress(),
            dynamic_ncols=True,
        )
        with stop_request() as stop, bar, worker_errors(), self._started() as (batches, logger):
            try:
                while not self.is_finished:
                    if self._validation_is_due:
                        bar.write(self._validate(logger, stop))
                        continue
                    epoch = progress.step // self.steps_per_epoch + 1
                    loss, lr, norm = self._update(batches)
                    bar.set_description_str(f"epoch {epoch}/{settings.epochs}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                    bar.update(self.samples_per_step)
                    if logger is not None:
                        logger.step(progress.step, loss, lr, norm)
                    stop.check()
                    if progress.step % (settings.save_every_steps or math.inf) == 0 or (
                        time.monotonic() - self._saved > settings.save_every_minutes * 60
                    ):
                        self._save(logger)
                stop.check()
            except Stopped:
                bar.close()
                self._save(None)  # at once; then the logger is closed
                print(
                    f"\nstopped after step {progress.step} of {self.num_steps}, which is saved; "
                    "pass resume=True to continue from there"
                )
                raise

    @contextmanager
    def _started(self) -> Iterator[tuple[Iterator[Sequence[Tensor]], RunLogger | None]]:
        """Start the workers, then the logger, whose thread they must not inherit."""
        batches = load_samples(
            self.dataset,
            batch_sampler=self.sampler(),
            num_workers=self.settings.num_workers,
            pin_memory=self.model.device.type == "cuda",
        )
        logger, step = None, self.progress.step
        if distributed.rank() == 0:
            logger = RunLogger(self.run, self.model.classes, self.settings, step)
        try:
            yield batches, logger
        finally:
            batches.close()
            if logger is not None:
                logger.close()

    def _update(self, batches: Iterator[Sequence[Tensor]]) -> tuple[float, float, float]:
        """Make the next update; return its loss, learning rate and norm of the gradients."""
        settings, progress, step = self.settings, self.progress, self.progress.step
        # The random numbers of the network, for dropout, are a function of the step.
        seed = np.random.SeedSequence([Stream.STEP, settings.seed, step, distributed.rank()])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        multiplier = self._rate_multiplier(step)
        lr = self.config.optimizer.lr * multiplier
        if isinstance(self.net, UNet):
            frozen_steps = settings.freeze_encoder_epochs * self.steps_per_epoch
            self.net.encoder.frozen = step < frozen_steps
        with memory_advice(smaller_step(self.config)):
            loss, norm = self.training_step.gradients(islice(batches, settings.accumulate))
            skips = not math.isfinite(norm) and self.training_step.may_skip
            if not math.isfinite(loss) or (not math.isfinite(norm) and not skips):
                refuse_restarts(self.run)
                stems = self._stems_of_step(step)
                raise FloatingPointError(not_finite(self.run, step, lr, loss, norm, stems))
            self.training_step.update(multiplier)
        if self.average is not None:
            self.average.update(self.net, step)
        progress.step += 1
        progress.loss_sum += loss
        progress.skipped += skips
        return loss, lr, norm

    @property
    def _validation_is_due(self) -> bool:
        step, every = self.progress.step, self.settings.validate_every * self.steps_per_epoch
        return step > self.progress.validated and (step % every == 0 or step == self.num_steps)

    def _validate(self, logger: RunLogger | None, stop: StopRequest) -> str:
        """Score the model, log the scores and save; return a line of text about them.

        Without validation pairs there are no scores, and the last model is the best.
        """
        if not (self.run / "last.pt").exists():
            self._save(logger)  # so that a run with a best.pt can always be resumed
        progress, monitor = self.progress, self.settings.monitor
        has_scores = len(self.data.val_pairs) > 0
        columns, previews = self._score(self.model, stop, self.previews) if has_scores else ({}, [])
        row = {
            "epoch": math.ceil(progress.step / self.steps_per_epoch),
            "step": progress.step,
            "lr": self.config.optimizer.lr * self._rate_multiplier(progress.step - 1),
            "train_loss": progress.loss_sum / (progress.step - progress.validated),
            **columns,
            "skipped_steps": progress.skipped,
        }
        if self.settings.score_raw_weights and has_scores:
            row[f"raw_{monitor}"] = self._score(replace(self.model, net=self.net), stop)[0][monitor]
        stop.check()  # after a signal, pictures and logs would take too long
        row["seconds"] = round(time.monotonic() - self._start, 1)
        is_best = not has_scores or monitored(row, monitor) > max(self._scores, default=-math.inf)
        progress.history.append(row)
        progress.loss_sum = 0.0
        if logger is not None:
            if is_best:
                kept = [name for name in ("progress", "raw_model") if name in self.stateful]
                states = {name: self.stateful[name].state_dict() for name in kept}
                save_checkpoint(self.run / "best.pt", self.model.contents() | states)
            logger.validation(progress.history, previews)
        self._save(logger)  # last: this completes the validation
        left = row["seconds"] / progress.step * (self.num_steps - progress.step)
        return validation_text(row, self.settings.epochs or 1, monitor, is_best, left)

    def _score(
        self, model: Predictor, stop: StopRequest, keep: Sequence[int] = ()
    ) -> tuple[dict[str, float], list[PredictedImage]]:
        distributed.broadcast_buffers(model.net)
        matrix, kept, val_loss = score_pairs(
            model, self.data.val_pairs, "validate", stop, keep, self.training_step.loss_function
        )
        columns = score_columns(scores(matrix), model.classes.names, self.settings.monitor)
        return {"val_loss": val_loss, **columns}, kept

    def _save(self, logger: RunLogger | None) -> None:
        if logger is not None:
            logger.flush(not self._validation_is_due)
        self._saved = time.monotonic()
        if distributed.rank() == 0:
            self.progress.seconds = round(self._saved - self._start, 1)
            states = {name: component.state_dict() for name, component in self.stateful.items()}
            save_last(self.run, self.model.contents() | states | {"identity": self.identity})

    @property
    def _scores(self) -> list[float]:
        history = self.progress.history if len(self.data.val_pairs) else []
        return [monitored(row, self.settings.monitor) for row in history]

    def _rate_multiplier(self, step: int) -> float:
        return learning_rate_multiplier(
            step,
            num_steps=self.num_steps,
            steps_per_epoch=self.steps_per_epoch,
            scores=self._scores,
            **vars(self.config.schedule) | {"warmup_epochs": warmup_epochs(self.config)},
        )

    def sampler(self) -> SeededBatchSampler:
        """Return the rest of the run's batches."""
        return SeededBatchSampler(
            len(self.dataset),
            self.settings.batch_size,
            self.settings.seed,
            self.progress.step * self.settings.accumulate,
            self.num_steps * self.settings.accumulate,
            (distributed.rank(), distributed.world_size()),
        )

    def _stems_of_step(self, step: int) -> list[str]:
        """Return the stems of a step's samples in all processes, without repetitions."""
        accumulate, sampler = self.settings.accumulate, self.sampler()
        batches = range(step * accumulate, (step + 1) * accumulate)
        places = [place for number in batches for place in sampler.batch(number)]
        return list(dict.fromkeys(self.dataset.pair(place).stem for place in places))
