"""Predict pairs of image and mask files, and count right and wrong pixels."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from unet.build import build_reader
from unet.data.dataset import SegmentationDataset
from unet.data.loader import load_samples
from unet.data.pairing import Pair
from unet.inference.predictor import Model
from unet.inference.tta import TtaMode, mean_probabilities
from unet.metrics.confusion import confusion_matrix
from unet.models.unet import argmax_classes
from unet.runtime import distributed
from unet.runtime.device import num_cores
from unet.runtime.progress import Progress
from unet.runtime.signals import StopRequest

T = TypeVar("T")


class PredictedImage(NamedTuple):
    """An image (C, H, W) from 0 to 1, its target and its prediction, class ids (H, W)."""

    name: str
    image: Tensor
    target: np.ndarray
    prediction: np.ndarray


def score_pairs(
    model: Model,
    pairs: Sequence[Pair],
    title: str,
    stop: StopRequest | None = None,
    keep: Sequence[int] = (),
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, list[PredictedImage], float]:
    """Count the pixels of every image at the size of its mask.

    Distributed processes divide the images among them; each returns the results of all.

    Args:
        model: the model to score.
        pairs: image and mask files.
        title: of the progress.
        stop: checked before each image.
        keep: indices of the pairs to return.
        loss: of logits (1, K, H, W) and a target (1, H, W), on the device of the logits.

    Returns:
        The confusion matrix (K, K) int64 of all images, the images of `keep`, and the mean loss of
        an image, NaN without `loss`.

    Raises:
        Stopped: if `stop` has received a signal.
    """
    num_classes = len(model.classes.names)
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    kept: dict[int, PredictedImage] = {}
    losses = []
    for index, image, scores, target in predict_pairs(model, pairs, title, stop):
        prediction = argmax_classes(scores).cpu()
        matrix += confusion_matrix(prediction, target, num_classes)
        if loss is not None:
            with torch.inference_mode():
                losses.append(float(loss(scores[None], target[None].to(scores.device))))
        if index in keep:
            kept[index] = PredictedImage(
                pairs[index].stem, image, target.numpy(), prediction.numpy()
            )
    everything = gather(kept)
    # The exact sum does not depend on the order, nor on the number of processes.
    total = math.fsum(itertools.chain(*distributed.all_gather(losses)))
    return (
        distributed.all_reduce_sum(matrix),
        [everything[index] for index in keep],
        math.nan if loss is None else total / len(pairs),
    )


def predict_pairs(
    model: Model,
    pairs: Sequence[Pair],
    title: str,
    stop: StopRequest | None = None,
    tta: Sequence[TtaMode] = (),
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield index, image, logits (probabilities with `tta`) and target of this process's pairs.

    Images of one size in a row go through the network together, see `Predictor.batch_size`.
    """
    indices = distributed.shard(range(len(pairs)))
    samples = load_samples(
        SegmentationDataset(pairs, build_reader(model.config), normalization=None),
        sampler=[(0, index) for index in indices],  # one by one, as their sizes may differ
        # A model may come from a machine with more cores; torch warns of more workers than cores.
        num_workers=min(model.config.train.num_workers, num_cores()),
    )
    # Processes with fewer images make as many rounds, as all of them must check for a signal.
    rounds = range(math.ceil(len(pairs) / distributed.world_size()))
    batch: list[tuple[int, Tensor, Tensor]] = []
    with Progress(len(indices), title, "image") as progress:
        for i, sample in itertools.zip_longest(rounds, samples):
            if stop is not None:
                stop.check()
            if batch and (sample is None or not _fits(model, batch, sample[0], tta)):
                yield from _predict_batch(model, batch, tta)
                progress.update(len(batch))
                batch = []
            if sample is not None:
                batch.append((indices[i], *sample))
        yield from _predict_batch(model, batch, tta)
        progress.update(len(batch))


def _fits(
    model: Model,
    batch: Sequence[tuple[int, Tensor, Tensor]],
    image: Tensor,
    tta: Sequence[TtaMode],
) -> bool:
    """Whether an image can go through the network together with those before it."""
    shape = batch[0][1].shape
    return not tta and image.shape == shape and len(batch) < model.batch_size((shape[1], shape[2]))


def _predict_batch(
    model: Model, batch: Sequence[tuple[int, Tensor, Tensor]], tta: Sequence[TtaMode]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    images = [image for _, image, _ in batch]
    if len(batch) > 1:
        scores = list(model.batch_logits(images))
    else:
        scores = [
            mean_probabilities(model, image, tta) if tta else model.logits(image)
            for image in images
        ]
    for (index, image, target), one in zip(batch, scores, strict=True):
        yield index, image, one, target


def gather(results: dict[int, T]) -> dict[int, T]:
    """Merge the results of all processes, by index."""
    return {index: one for part in distributed.all_gather(results) for index, one in part.items()}
