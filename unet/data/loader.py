"""Samples of a dataset, loaded by worker processes."""

import pickle
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from unet.runtime.errors import WorkerError
from unet.runtime.signals import ignore_signals_in_worker, stop_request


def load_samples(
    dataset: Dataset[Any],
    *,
    sampler: Sequence[Any] | None = None,
    batch_sampler: Sampler[list[Any]] | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    """Start loading; return an iterator over batches, or over single samples of `sampler`.

    An error of the dataset is raised as it is, also if it arose in a worker process.
    """
    loader = DataLoader(
        _ErrorsAsSamples(dataset),
        batch_size=None if batch_sampler is None else 1,
        sampler=sampler,
        batch_sampler=batch_sampler,
        collate_fn=None if batch_sampler is None else _collate,
        num_workers=num_workers,
        worker_init_fn=ignore_signals_in_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # otherwise it draws from the global one
    )
    try:
        # A signal must not raise an error within a fork, here or in the worker.
        with stop_request(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # the error says more
            iterator = iter(loader)  # which starts the workers
    except (AttributeError, TypeError, pickle.PicklingError) as error:  # without fork
        raise ValueError(
            f"train.num_workers: got {num_workers}, but the transform cannot be sent to other "
            f"processes ({error}); define it at the top level of a module, or set "
            "train.num_workers=0"
        ) from error
    return _iterate(iterator)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise `WorkerError` if a worker is killed while the block runs.

    Torch notices that by a signal, and raises a plain RuntimeError wherever the main thread is.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise WorkerError(
            f"{str(error).strip()}; lower train.num_workers or data.cache_gib if memory ran out"
        ) from error


class _ErrorsAsSamples(Dataset[Any]):
    """Torch would replace the text of a worker's error by its traceback, and lose its `errno`."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, place: Any) -> Any:
        try:
            return self.dataset[place]
        except Exception as error:
            if get_worker_info() is not None:  # the traceback itself does not leave the worker
                error.add_note(traceback.format_exc())
            return error


def _collate(samples: list[Any]) -> Any:
    if errors := [sample for sample in samples if isinstance(sample, Exception)]:
        return errors[0]
    sizes = dict.fromkeys(s[0].shape[-2:] for s in samples if isinstance(s, tuple))
    if len(sizes) > 1:  # after a transform of the user; `check_data` compares the files
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        return ValueError(
            f"augment.crop: got null for samples of {shown} pixels, expected one size within a "
            "batch; set it, or crop in the transform"
        )
    return default_collate(samples)


def _iterate(iterator: Iterator[Any]) -> Generator[Any, None, None]:
    try:
        for sample in iterator:
            if isinstance(sample, Exception):
                raise sample
            yield sample
    finally:
        del iterator  # an error's traceback would keep the workers alive
