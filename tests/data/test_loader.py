import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from unet.data.loader import load_samples, worker_errors
from unet.runtime.errors import WorkerError


class Squares(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        if i == 3:
            raise FileNotFoundError(2, "No such file or directory", "3.png")
        return torch.tensor(i**2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_leaves_a_worker_as_it_is(num_workers: int) -> None:
    batches = BatchSampler(SequentialSampler(Squares()), 2, drop_last=False)
    loaded = load_samples(Squares(), batch_sampler=batches, num_workers=num_workers)
    assert next(loaded).tolist() == [0, 1]
    with pytest.raises(FileNotFoundError) as caught:
        next(loaded)
    assert (caught.value.errno, caught.value.filename) == (2, "3.png")
    if num_workers:  # the worker's traceback comes along for --traceback
        assert "__getitem__" in caught.value.__notes__[0]


def test_single_samples_come_in_the_order_of_the_sampler() -> None:
    assert [int(sample) for sample in load_samples(Squares(), sampler=[2, 0, 1])] == [4, 0, 1]


class Killed(Squares):
    def __getitem__(self, i: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(i)


def test_a_worker_that_is_killed_has_its_own_error() -> None:
    with (
        pytest.raises(WorkerError, match=r"DataLoader worker .*lower train\.num_workers"),
        worker_errors(),
    ):
        list(load_samples(Killed(), sampler=[0], num_workers=1))
    with pytest.raises(RuntimeError, match="other"), worker_errors():
        raise RuntimeError("other")


def test_a_transform_that_cannot_be_sent_to_a_spawned_worker_is_named() -> None:
    class Local(Squares):
        pass

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(ValueError, match=r"^train.num_workers: got 1, .*Local.*; define it at"):
            load_samples(Local(), sampler=[0], num_workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
