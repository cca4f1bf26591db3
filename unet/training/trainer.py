"""The loop of a training: updates, validations and saves, until its run is finished."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unet.checkpoint import save_checkpoint
from unet.config.schema import Config
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.loader import load_samples, worker_errors
from unet.data.sampler import SeededBatchSampler
from unet.evaluation.scoring import PredictedImage, score_pairs
from unet.inference.predictor import Predictor
from unet.inspection.check import CheckedData
from unet.metrics.confusion import Scores, scores
from unet.models.unet import UNet
from unet.runtime import distributed
from unet.runtime.device import memory_advice
from unet.runtime.seeds import Stream
from unet.runtime.signals import Stopped, StopRequest, stop_request
from unet.training.logger import RunLogger
from unet.training.run_folder import Progress, give_up, save_last
from unet.training.schedule import learning_rate_factor, validations_without_gain
from unet.training.step import TrainingStep, WeightAverage


class Trainer:
    """The rest of a training, from its beginning or a checkpoint; its config is the model's.

    What it does next follows from config and progress alone.

    Args:
        run: the folder.
        model: what is scored and saved: `net`, or the average of its weights.
        net: what learns.
        training_step: updates `net`.
        average: of the weights of `net`; None for none.
        dataset: training samples.
        data: the checked data, whose validation pairs are scored.
        state: of last.pt, to go on from: it is loaded into model, net and training_step. None for
            the beginning.
    """

    def __init__(
        self,
        *,
        run: Path,
        model: Predictor,
        net: UNet,
        training_step: TrainingStep,
        average: WeightAverage | None,
        dataset: SegmentationDataset,
        data: CheckedData,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.progress = Progress()
        self._config = model.config
        self._run = run
        self._model = model
        self._net = net
        self._training_step = training_step
        self._average = average
        self._dataset = dataset
        self._data = data
        self._stateful: dict[str, Any] = {
            "optimizer": training_step.optimizer,
            "scaler": training_step.scaler,
        }
        if average is not None:
            self._stateful["raw_model"] = net
        if state is not None:
            for name, part in {"model": model.net, **self._stateful}.items():
                part.load_state_dict(state[name])
            self.progress = Progress(**state["progress"])
        settings = model.config.train
        self._per_step = settings.batch_size * settings.accumulate
        self._steps_per_epoch = settings.steps_per_epoch or math.ceil(len(dataset) / self._per_step)
        self.num_steps = settings.epochs * self._steps_per_epoch
        num_pairs = len(data.val_pairs)
        num_previews = min(settings.previews, num_pairs)
        # Spread over all, and each time the same.
        self._preview_places = [i * num_pairs // num_previews for i in range(num_previews)]

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the score has not grown for `train.patience`."""
        waited = validations_without_gain(self.progress.scores)
        patience = self._config.train.patience or math.inf
        return self.progress.validated == self.num_steps or waited >= patience

    def finish(self) -> None:
        """Go on until it is finished.

        Raises:
            FloatingPointError: if the loss or a gradient is no longer a finite number.
            MemoryError: with advice, if there is too little.
            Stopped: after SIGINT or SIGTERM, once the step is done and saved.
        """
        settings, progress = self._config.train, self.progress
        self._start, self._saved = time.monotonic() - progress.seconds, time.monotonic()
        batches = self._batches()  # before the tracker, whose thread no worker should inherit
        tracker = None
        if distributed.rank() == 0:
            tracker = RunLogger(self._run, self._config, progress.step)
        bar = tqdm(
            total=self.num_steps * self._per_step,
            initial=progress.step * self._per_step,
            unit=" images",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}, {rate_fmt}",
            disable=distributed.disable_progress(),
            dynamic_ncols=True,
        )
        with stop_request() as stop, bar, worker_errors():
            try:
                while not self.is_finished:
                    if self._validation_is_due:
                        bar.write(self._validate(tracker, stop))
                        continue
                    epoch = progress.step // self._steps_per_epoch + 1
                    loss, lr, norm = self._update(batches)
                    bar.set_description_str(f"epoch {epoch}/{settings.epochs}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}", refresh=False)
                    bar.update(self._per_step)
                    if tracker is not None:
                        tracker.step(progress.step, loss, lr, norm)
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
                    "the same command with --resume goes on from there"
                )
                raise
            finally:
                if tracker is not None:
                    tracker.close()

    def _stream(self) -> SeededBatchSampler:
        settings = self._config.train
        return SeededBatchSampler(
            len(self._dataset),
            settings.batch_size,
            settings.seed,
            self.progress.step * settings.accumulate,
            self.num_steps * settings.accumulate,
            (distributed.rank(), distributed.world_size()),
        )

    def _batches(self) -> Iterator[Sequence[Tensor]]:
        return load_samples(
            self._dataset,
            batch_sampler=self._stream(),
            num_workers=self._config.train.num_workers,
            pin_memory=self._model.device.type == "cuda",
        )

    def _rate_factor(self, step: int) -> float:
        return learning_rate_factor(
            self._config.schedule, step, self.num_steps, self._steps_per_epoch, self.progress.scores
        )

    @property
    def _validation_is_due(self) -> bool:
        step, every = self.progress.step, self._config.train.validate_every * self._steps_per_epoch
        return step > self.progress.validated and (step % every == 0 or step == self.num_steps)

    def _update(self, batches: Iterator[Sequence[Tensor]]) -> tuple[float, float, float]:
        """Make the next step; return its loss, learning rate and norm of the gradients."""
        settings, progress, number = self._config.train, self.progress, self.progress.step
        # What a network draws by lot is a function of the step.
        seed = np.random.SeedSequence([Stream.STEP, settings.seed, number, distributed.rank()])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        factor = self._rate_factor(number)
        lr = self._config.optimizer.lr * factor
        self._net.encoder.frozen = number < settings.freeze_encoder_epochs * self._steps_per_epoch
        with memory_advice(_memory_advice(self._config)):
            loss, norm = self._training_step.gradients(islice(batches, settings.accumulate))
            skips = not math.isfinite(norm) and self._training_step.may_skip
            if not math.isfinite(loss) or (not math.isfinite(norm) and not skips):
                stems = self._stems_of_step(number)
                give_up(self._run)
                raise FloatingPointError(_not_finite(self._run, number, lr, loss, norm, stems))
            self._training_step.update(factor)
        if self._average is not None:
            self._average.update(self._net, number)
        progress.step += 1
        progress.loss_sum += loss
        progress.skipped += skips
        return loss, lr, norm

    def _stems_of_step(self, step: int) -> list[str]:
        """The samples of all processes in a step, each once."""
        accumulate, stream = self._config.train.accumulate, self._stream()
        batches = range(step * accumulate, (step + 1) * accumulate)
        places = [place for number in batches for place in stream.batch(number)]
        return list(dict.fromkeys(self._dataset.pair(place).stem for place in places))

    def _validate(self, tracker: RunLogger | None, stop: StopRequest) -> str:
        """Score the model, note that and save it; return the line that says so."""
        progress = self.progress
        result, previews = self._score(self._model, stop, self._preview_places)
        row = {
            "epoch": math.ceil(progress.step / self._steps_per_epoch),
            "step": progress.step,
            "lr": self._config.optimizer.lr * self._rate_factor(progress.step - 1),
            "train_loss": progress.loss_sum / (progress.step - progress.validated),
            **_columns(result, self._model.classes),
            "skipped_steps": progress.skipped,
        }
        if self._average is not None:
            raw, _ = self._score(replace(self._model, net=self._net), stop)
            row["raw_mean_iou"] = raw.mean_iou
        row["seconds"] = round(time.monotonic() - self._start, 1)
        is_best = result.mean_iou > max(progress.scores, default=-math.inf)
        progress.history.append(row)
        progress.loss_sum = 0.0
        if tracker is not None:
            if is_best:
                states: dict[str, Any] = {"progress": asdict(progress)}
                if self._average is not None:
                    states["raw_model"] = self._net.state_dict()
                save_checkpoint(self._run / "best.pt", self._model.contents() | states)
            tracker.validation(progress.history, previews)
        self._save()  # last: with it, the validation is done
        return _line(row, self._config.train.epochs, is_best)

    def _score(
        self, model: Predictor, stop: StopRequest, keep: Sequence[int] = ()
    ) -> tuple[Scores, list[PredictedImage]]:
        distributed.broadcast_buffers(model.net)
        matrix, kept = score_pairs(model, self._data.val_pairs, "validate", stop, keep)
        return scores(matrix), kept

    def _save(self) -> None:
        self._saved = time.monotonic()
        if distributed.rank() == 0:
            self.progress.seconds = round(self._saved - self._start, 1)
            states = {name: part.state_dict() for name, part in self._stateful.items()}
            states["progress"] = asdict(self.progress)
            states["train_stems"] = [pair.stem for pair in self._data.train_pairs]
            states["data"] = self._data.fingerprint
            states["dtype"] = str(self._training_step.dtype)
            states["world_size"] = distributed.world_size()
            save_last(self._run, self._model, states)


def _columns(result: Scores, classes: ClassMap) -> dict[str, float]:
    """The scores in a line of metrics.csv."""
    return {
        "mean_iou": result.mean_iou,
        "mean_dice": result.mean_dice,
        "pixel_accuracy": result.pixel_accuracy,
        **{f"iou_{name}": iou for name, iou in zip(classes.names, result.iou, strict=True)},
    }


def _line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    """A validation in words."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['train_loss']:.4f}  "
        f"mean IoU {row['mean_iou']:.4f}  pixel accuracy {row['pixel_accuracy']:.4f}"
        + (f"  raw mean IoU {row['raw_mean_iou']:.4f}" if "raw_mean_iou" in row else "")
        + (f"  {row['skipped_steps']} steps skipped" if row["skipped_steps"] else "")
        + ("  best" if is_best else "")
    )


def _not_finite(
    run: Path, step: int, lr: float, loss: float, norm: float, samples: Sequence[str]
) -> str:
    """The end of a run whose numbers have left the range of its dtype."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"a gradient is {norm}"
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    last = run / "last.pt"
    return (
        f"train: {what} in step {step + 1}, at a learning rate of {lr:.3g}, on the samples "
        f"{', '.join(samples[:8])}{more}; the weights were not changed by it"
        + (f", and {last} is whole" if last.exists() else "")
        + ". Lower optimizer.lr, lengthen schedule.warmup_epochs or set train.clip_grad_norm=1, "
        "and train anew with --overwrite; or look at these samples with 'unet check --pictures'"
    )


def _memory_advice(config: Config) -> str:
    """What would make a step smaller, of what is not done yet."""
    settings, crop = config.train, config.augment.crop
    size = f"crops of {crop[0]} x {crop[1]}" if crop else "whole images"
    advice = []
    smaller = [max(16, side // 32 * 16) for side in crop] if crop else [256, 256]
    geometry = config.model.geometry
    if geometry.context:  # half of the pixels with logits
        learned = [side - 2 * geometry.context for side in crop or (512, 512)]
        smaller = [geometry.input_side(max(side // 2, 1)) for side in learned]
    if (half := settings.batch_size // 2) and half % distributed.world_size() == 0:
        advice.append(
            f"train.batch_size={half} with train.accumulate={2 * settings.accumulate} (the same "
            "samples in a step, half of the memory)"
        )
    if not settings.activation_checkpointing and not settings.compile:
        advice.append("train.activation_checkpointing=true (slower)")
    if crop is None or smaller != list(crop):
        advice.append(f"augment.crop={smaller}".replace(" ", ""))
    advice.append("smaller model.widths")
    return f"a step has batches of {settings.batch_size} {size}: set {', or '.join(advice)}"
