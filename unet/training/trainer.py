"""Training: `train` turns a config into a trained model; the loop is `Trainer.fit`."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from unet.checkpoint import save_checkpoint
from unet.config.schema import Config
from unet.config.values import config_to_dict
from unet.data.loader import load_samples, worker_errors
from unet.data.sampler import SeededBatchSampler
from unet.evaluation.scoring import PredictedImage, score_pairs
from unet.inference.predictor import Predictor
from unet.metrics.confusion import scores
from unet.metrics.monitor import monitored, score_columns
from unet.runtime import distributed
from unet.runtime.device import deterministic, memory_advice, pick_device
from unet.runtime.seeds import Stream
from unet.runtime.signals import Stopped, StopRequest, stop_request
from unet.training.initial_weights import InitialWeights, read_initial_weights
from unet.training.logger import RunLogger
from unet.training.messages import (
    not_finite,
    smaller_step,
    start_text,
    summary_text,
    validation_text,
)
from unet.training.run_folder import (
    check_same,
    find_state,
    locked,
    prepare_folder,
    refuse_restarts,
    save_last,
)
from unet.training.schedule import learning_rate_multiplier, validations_without_gain
from unet.training.setup import Components, build_components, check_processes, check_training_data


def train(config: Config, resume: bool = False, overwrite: bool = False) -> Path:
    """Train a model; under torchrun, in all processes together.

    Args:
        config: one run; `train.seeds` is not used.
        resume: continue the run from its last.pt, if it exists.
        overwrite: delete an existing run of the same name first.

    Returns:
        The run's folder, with best.pt, last.pt and the previous.pt before it, config.yaml,
        metrics.csv, previews/ and, if their extras are installed, curves.png and tensorboard/.

    Raises:
        FileExistsError: if the run exists and is neither resumed nor overwritten, or if another
            process is training it.
        FileNotFoundError: if a folder or file is missing.
        FloatingPointError: if the loss or a gradient is not finite.
        MemoryError: with advice, if memory runs out.
        Stopped: after SIGINT or SIGTERM, when the step is done and saved.
        ValueError: if the data does not fit the config, or the run to resume had another config.
    """
    distributed.initialize()
    run = Path(config.runs) / config.name
    with (
        locked(run),
        deterministic(config.train.deterministic),
        distributed.lost_process_errors(),
        memory_advice("use smaller model.widths"),
    ):
        device = pick_device(config.train.device)
        check_processes(config, device)
        state = find_state(run, config, resume, overwrite)
        initial = read_initial_weights(config) if state is None else InitialWeights()
        # All data is read once, so that errors in it are reported before the training starts.
        data = check_training_data(config)
        trainer = Trainer(run, build_components(config, data, device, initial, state))
        if state is not None:
            trainer.resume(state)
        prepare_folder(run, config, is_resumed=state is not None)
        print(start_text(config, run, trainer.net, device, trainer.training_step.dtype))
        if trainer.progress.step:
            print(f"resuming after step {trainer.progress.step} of {trainer.num_steps}")
        if trainer.is_finished:
            print("the run is complete: there is nothing left to train")
        else:
            trainer.fit()
        print(summary_text(config, run, trainer.progress.history, data.skipped))
    return run


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: updates so far.
        loss_sum: sum of the losses since the last validation.
        skipped: updates that float16 skipped.
        seconds: duration so far.
        history: a row of metrics.csv for each validation.
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

    def state_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set all fields."""
        vars(self).update(state)


class Trainer:
    """The rest of a run: updates, validations and saves until it is finished.

    Each next action depends only on the config and the state, so that a resumed run equals an
    uninterrupted one.

    Args:
        run: its folder.
        components: what it works with.
    """

    def __init__(self, run: Path, components: Components) -> None:
        self.run = run
        self.net, self.average = components.net, components.average
        self.model, self.config = components.model, components.model.config
        self.training_step = components.training_step
        self.dataset, self.data = components.dataset, components.data
        self.progress = Progress()
        self.stateful: dict[str, Any] = {
            "model": self.model.net,
            "optimizer": self.training_step.optimizer,
            "scaler": self.training_step.scaler,
            "progress": self.progress,
        }
        if self.average is not None:
            self.stateful["raw_model"] = self.net
        settings = self.config.train
        self.samples_per_step = settings.batch_size * settings.accumulate
        self.steps_per_epoch = settings.steps_per_epoch or math.ceil(
            len(self.dataset) / self.samples_per_step
        )
        self.num_steps = settings.epochs * self.steps_per_epoch
        num_pairs = len(self.data.val_pairs)
        num_previews = min(settings.previews, num_pairs)
        # Evenly spaced, and the same ones at each validation.
        self.preview_indices = [i * num_pairs // num_previews for i in range(num_previews)]

    @property
    def _identity(self) -> dict[str, Any]:
        """What a run must be resumed with."""
        return {
            "train_stems": [pair.stem for pair in self.data.train_pairs],
            "val_stems": [pair.stem for pair in self.data.val_pairs],
            "data": self.data.fingerprint,
            "dtype": str(self.training_step.dtype).removeprefix("torch."),
            "world_size": distributed.world_size(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Load the state of a last.pt.

        Raises:
            ValueError: if the run was started with other data or another dtype.
        """
        check_same(self.run, state["identity"], self._identity)
        for name, component in self.stateful.items():
            component.load_state_dict(state[name])

    @property
    def scores(self) -> list[float]:
        """The monitored score of each validation."""
        return [monitored(row, self.config.train.monitor) for row in self.progress.history]

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the score has not improved for `train.patience`."""
        patience = self.config.train.patience or math.inf
        return (
            self.progress.validated == self.num_steps
            or validations_without_gain(self.scores) >= patience
        )

    def fit(self) -> None:
        """Train until the run is finished.

        Raises:
            FloatingPointError, MemoryError, Stopped: see `train`.
        """
        settings, progress = self.config.train, self.progress
        self._start, self._saved = time.monotonic() - progress.seconds, time.monotonic()
        # Before the logger, whose thread workers must not inherit.
        batches = load_samples(
            self.dataset,
            batch_sampler=self._sampler(),
            num_workers=settings.num_workers,
            pin_memory=self.model.device.type == "cuda",
        )
        logger = None
        if distributed.rank() == 0:
            settings_text = yaml.safe_dump(config_to_dict(self.config), sort_keys=False)
            logger = RunLogger(
                self.run, self.model.classes, settings.monitor, progress.step, settings_text
            )
        bar = tqdm(
            total=self.num_steps * self.samples_per_step,
            initial=progress.step * self.samples_per_step,
            unit=" images",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}, {rate_fmt}",
            disable=distributed.disable_progress(),
            dynamic_ncols=True,
        )
        with stop_request() as stop, bar, worker_errors():
            try:
                while not self.is_finished:
                    if self._validation_is_due:
                        bar.write(self._validate(logger, stop))
                        continue
                    epoch = progress.step // self.steps_per_epoch + 1
                    loss, lr, norm = self._update(batches)
                    bar.set_description_str(f"epoch {epoch}/{settings.epochs}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}", refresh=False)
                    bar.update(self.samples_per_step)
                    if logger is not None:
                        logger.step(progress.step, loss, lr, norm)
                    stop.check()
                    if progress.step % (settings.save_every_steps or math.inf) == 0 or (
                        time.monotonic() - self._saved > settings.save_every_minutes * 60
                    ):
                        self._save()
            except Stopped:
                bar.close()
                self._save()
                print(
                    f"\nstopped after step {progress.step} of {self.num_steps}, which is saved; "
                    "the same command with --resume continues from there"
                )
                raise
            finally:
                if logger is not None:
                    logger.close()

    def _sampler(self) -> SeededBatchSampler:
        settings = self.config.train
        return SeededBatchSampler(
            len(self.dataset),
            settings.batch_size,
            settings.seed,
            self.progress.step * settings.accumulate,
            self.num_steps * settings.accumulate,
            (distributed.rank(), distributed.world_size()),
        )

    def _rate_multiplier(self, step: int) -> float:
        return learning_rate_multiplier(
            step,
            num_steps=self.num_steps,
            steps_per_epoch=self.steps_per_epoch,
            scores=self.scores,
            **vars(self.config.schedule),
        )

    @property
    def _validation_is_due(self) -> bool:
        step, every = self.progress.step, self.config.train.validate_every * self.steps_per_epoch
        return step > self.progress.validated and (step % every == 0 or step == self.num_steps)

    def _update(self, batches: Iterator[Sequence[Tensor]]) -> tuple[float, float, float]:
        """Make the next update; return its loss, learning rate and norm of the gradients."""
        settings, progress, step = self.config.train, self.progress, self.progress.step
        # The random numbers of the network, for dropout, are a function of the step.
        seed = np.random.SeedSequence([Stream.STEP, settings.seed, step, distributed.rank()])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        multiplier = self._rate_multiplier(step)
        lr = self.config.optimizer.lr * multiplier
        self.net.encoder.frozen = step < settings.freeze_encoder_epochs * self.steps_per_epoch
        with memory_advice(smaller_step(self.config)):
            loss, norm = self.training_step.gradients(islice(batches, settings.accumulate))
            skips = not math.isfinite(norm) and self.training_step.may_skip
            if not math.isfinite(loss) or (not math.isfinite(norm) and not skips):
                refuse_restarts(self.run)
                raise FloatingPointError(
                    not_finite(self.run, step, lr, loss, norm, self._stems_of_step(step))
                )
            self.training_step.update(multiplier)
        if self.average is not None:
            self.average.update(self.net, step)
        progress.step += 1
        progress.loss_sum += loss
        progress.skipped += skips
        return loss, lr, norm

    def _stems_of_step(self, step: int) -> list[str]:
        """Return the samples of a step in all processes, without repetitions."""
        accumulate, sampler = self.config.train.accumulate, self._sampler()
        batches = range(step * accumulate, (step + 1) * accumulate)
        places = [place for batch in batches for place in sampler.batch(batch)]
        return list(dict.fromkeys(self.dataset.pair(place).stem for place in places))

    def _validate(self, logger: RunLogger | None, stop: StopRequest) -> str:
        """Score the model, log the scores and save; return a line of text about them."""
        if not (self.run / "last.pt").exists():
            self._save()  # so that a run with a best.pt can always be resumed
        progress, monitor = self.progress, self.config.train.monitor
        result, previews = self._score(self.model, stop, self.preview_indices)
        row = {
            "epoch": math.ceil(progress.step / self.steps_per_epoch),
            "step": progress.step,
            "lr": self.config.optimizer.lr * self._rate_multiplier(progress.step - 1),
            "train_loss": progress.loss_sum / (progress.step - progress.validated),
            **result,
            "skipped_steps": progress.skipped,
        }
        if self.average is not None:
            raw, _ = self._score(replace(self.model, net=self.net), stop)
            row[f"raw_{monitor}"] = raw[monitor]
        row["seconds"] = round(time.monotonic() - self._start, 1)
        is_best = monitored(row, monitor) > max(self.scores, default=-math.inf)
        progress.history.append(row)
        progress.loss_sum = 0.0
        if logger is not None:
            if is_best:
                states: dict[str, Any] = {"progress": progress.state_dict()}
                if self.average is not None:
                    states["raw_model"] = self.net.state_dict()
                save_checkpoint(self.run / "best.pt", self.model.contents() | states)
            logger.validation(progress.history, previews)
        self._save()  # last: this completes the validation
        return validation_text(row, self.config.train.epochs, monitor, is_best)

    def _score(
        self, model: Predictor, stop: StopRequest, keep: Sequence[int] = ()
    ) -> tuple[dict[str, float], list[PredictedImage]]:
        """Score a model on the validation images; also return the predictions of some."""
        distributed.broadcast_buffers(model.net)
        matrix, kept = score_pairs(model, self.data.val_pairs, "validate", stop, keep)
        return score_columns(scores(matrix), model.classes.names, self.config.train.monitor), kept

    def _save(self) -> None:
        self._saved = time.monotonic()
        if distributed.rank() == 0:
            self.progress.seconds = round(self._saved - self._start, 1)
            states = {name: component.state_dict() for name, component in self.stateful.items()}
            save_last(self.run, self.model.contents() | states | {"identity": self._identity})
