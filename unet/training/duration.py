"""How long a training takes on this machine, and how many steps fit in a given time."""

import copy
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from itertools import islice
from typing import Any

from unet.config.schema import Config
from unet.data.loader import load_samples
from unet.evaluation.scoring import score_pairs
from unet.runtime import distributed
from unet.runtime.device import memory_advice
from unet.runtime.signals import StopRequest, stop_request
from unet.runtime.text import format_duration, plural
from unet.training.messages import smaller_step
from unet.training.trainer import Trainer

_SAVING = 1.0
"""Seconds for the checkpoints, pictures and curves of a validation."""


@dataclass(frozen=True)
class Costs:
    """The time of the parts of a training in seconds."""

    step: float  # one update, with samples of decoded images
    validation: float  # scores of all validation images, pictures and checkpoints
    decoding: float = 0.0  # what a step takes longer until the images are in the cache
    num_decoding: int = 0  # steps until then

    def total(self, config: Config, steps_per_epoch: int) -> float:
        """The time of all epochs."""
        epochs, every = config.train.epochs or 0, config.train.validate_every
        steps, validations = epochs * steps_per_epoch, -(-epochs // every)
        decoding = min(steps, self.num_decoding) * self.decoding
        return decoding + steps * self.step + validations * self.validation

    def num_steps(self, seconds: float) -> int:
        """The number of steps that end in time."""
        all_decoded = self.num_decoding * (self.step + self.decoding)
        if seconds < all_decoded:
            return int(seconds / (self.step + self.decoding))
        return self.num_decoding + int((seconds - all_decoded) / self.step)


def timing_seconds(config: Config) -> float:
    """Return how long to time steps: longer if the number of steps depends on it."""
    minutes = config.train.minutes
    return 2.0 if minutes is None else min(10.0, 2.0 * minutes)


def measure_costs(trainer: Trainer, seconds: float) -> Costs:
    """Time steps for about `seconds`, and a few validation images; undo the steps."""
    saved = {
        name: copy.deepcopy(component.state_dict()) for name, component in trainer.stateful.items()
    }
    try:
        with stop_request() as stop:
            step, decoding, num_decoding = _time_step(trainer, seconds, stop)
            costs = Costs(step, _time_validation(trainer, stop), decoding, num_decoding)
    finally:
        for name, component in trainer.stateful.items():
            component.load_state_dict(saved[name])
    # The slowest process decides, and all processes need the same numbers.
    everywhere = distributed.all_gather(costs)
    return Costs(*(max(values) for values in zip(*map(astuple, everywhere), strict=True)))


def plan_minutes(config: Config, costs: Costs, elapsed: float) -> Config:
    """Replace `train.minutes` by the numbers of epochs and steps that end in time.

    An epoch is a tenth of the run, or more if ten validations take more than a tenth of the time.

    Args:
        config: of the run.
        costs: of its parts.
        elapsed: seconds that the preparation has taken.

    Raises:
        ValueError: if there is no time for ten steps and one validation.
    """
    minutes = config.train.minutes
    assert minutes is not None
    left = 60 * minutes - elapsed
    num_validations = max(1, min(10, int(0.1 * left / costs.validation)))
    steps = costs.num_steps(left - num_validations * costs.validation)
    if steps < 10:
        least = elapsed + costs.validation + 10 * (costs.step + costs.decoding)
        raise ValueError(
            f"train.minutes: got {minutes:g}, expected at least {1.1 * least / 60:.1f}: the "
            f"preparation took {format_duration(elapsed)}, a validation takes "
            f"{format_duration(costs.validation)} and a step {format_duration(costs.step)}; a "
            "smaller augment.crop, train.batch_size or model.widths is faster"
        )
    schedule = config.schedule
    warmup = min(schedule.warmup_epochs, num_validations / 10)
    return replace(
        config,
        schedule=replace(schedule, warmup_epochs=warmup),
        train=replace(
            config.train,
            minutes=None,
            epochs=num_validations,
            steps_per_epoch=steps // num_validations,
            validate_every=1,
        ),
    )


def describe_duration(config: Config, costs: Costs, steps_per_epoch: int) -> str:
    """State how long the training takes, and how to make it shorter."""
    steps = (config.train.epochs or 0) * steps_per_epoch
    text = (
        f"about {format_duration(costs.total(config, steps_per_epoch))}: {plural(steps, 'step')} "
        f"of {format_duration(costs.step)}"
    )
    if costs.validation > _SAVING:
        text += f", and {format_duration(costs.validation)} for each validation"
    return text


def _time_step(trainer: Trainer, seconds: float, stop: StopRequest) -> tuple[float, float, int]:
    """Return the fields of `Costs` that concern steps."""
    training_step, accumulate = trainer.training_step, trainer.settings.accumulate
    with closing(_load(trainer)) as batches:
        start, count = time.monotonic(), 0
        for count, _ in enumerate(batches, 1):
            stop.check()
            late = count >= 4 * accumulate and time.monotonic() - start > seconds / 2
            if distributed.any_rank(late):  # all processes check for a signal equally often
                break
        decoding = (time.monotonic() - start) / count * accumulate
    with memory_advice(smaller_step(trainer.config)), closing(_load(trainer)) as batches:
        times = [time.monotonic()]
        for _ in range(max(1, count // accumulate)):
            training_step.gradients(islice(batches, accumulate))
            training_step.update(0.0)
            if trainer.average is not None:
                trainer.average.update(trainer.net, 0)
            times.append(time.monotonic())
            stop.check()
            if distributed.any_rank(len(times) > 3 and times[-1] - times[0] > seconds):
                break
    # The first steps are slower: workers start, kernels are prepared, no sample is loaded ahead.
    third = times[0] + (times[-1] - times[0]) / 3
    first = next(i for i, now in enumerate(times[:-1]) if now >= third or i == len(times) - 2)
    step = (times[-1] - times[first]) / (len(times) - 1 - first)
    cache = trainer.dataset.cache
    num_cached = 0 if cache is None else cache.num_cached
    return step, decoding, num_cached // trainer.samples_per_step


def _load(trainer: Trainer) -> Generator[Any, None, None]:
    """Load the first batches of the training."""
    return load_samples(
        trainer.dataset,
        batch_sampler=trainer.sampler(),
        num_workers=trainer.settings.num_workers,
        pin_memory=trainer.model.device.type == "cuda",
    )


def _time_validation(trainer: Trainer, stop: StopRequest) -> float:
    pairs, model = trainer.data.val_pairs, trainer.model
    if not len(pairs):
        return _SAVING
    count, pixels = min(len(pairs), 5), trainer.data.val.sizes.prod(1)
    some = [i * len(pairs) // count for i in range(count)]
    times = []
    for indices in (some[:1], some):
        start = time.monotonic()
        score_pairs(model, [pairs[i] for i in indices], "measure", stop)
        times.append(time.monotonic() - start)
    # The first image waits for the workers to start.
    rest, timed = int(pixels.sum() - pixels[0]), int(pixels[some[1:]].sum())
    return _SAVING + times[0] + (max(0.0, times[1] - times[0]) * rest / timed if timed else 0.0)
