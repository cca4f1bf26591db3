"""The processes that torchrun starts: who is who, and what they tell each other.

With one process every function here does nothing, or returns what it was given.
"""

import atexit
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch

# Imported before there is a process group, whose functions would else keep it as a default argument
# for good (DistributedDataParallel imports it), and its threads with it: one that lets go of a
# tensor while Python ends aborts the process.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from unet.runtime.errors import LostProcessError

T = TypeVar("T")
P = ParamSpec("P")

# What gloo and nccl say when the process at the other end is gone.
_LOST_PROCESS = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|remote process exited|NCCL error", re.IGNORECASE
)


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def disable_progress() -> bool | None:
    """Whether to draw no progress bar, as tqdm's `disable`: only the first process draws any."""
    return True if rank() else None


def initialize() -> None:
    """Join the other processes, unless it was done before; gloo speaks for CPUs, nccl for GPUs."""
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store: Store
        store, number, count = next(rendezvous("env://"))
        # After a restart on one machine torchrun's store still holds the addresses of the processes
        # that are gone. (Several machines need not agree on the number of restarts.)
        if local_world_size() == world_size():
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(attempt, store)
        timeout = timedelta(hours=2)  # in which the first may read a large data set
        dist.init_process_group(
            backend, timeout=timeout, store=store, rank=number, world_size=count
        )
        atexit.register(dist.destroy_process_group)


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Raise `LostProcessError` if another process is gone while the block runs."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _LOST_PROCESS.search(str(error)):
            raise
        raise LostProcessError(
            "another process is gone, and this one ends with it; see the other's message"
        ) from error


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return the part of the items that is this process's to do; the parts make up the whole."""
    return items[rank() :: world_size()]


def run_on_first_rank(function: Callable[[], T]) -> T:
    """Run a function in the first process alone and return its result in all.

    Raises:
        Exception: that of the function, in the first process.
        SystemExit: in the others, which leave quietly.
    """
    if world_size() == 1:
        return function()
    box: list[Any] = [None, False]
    try:
        if rank() == 0:
            box = [function(), True]
    finally:
        with lost_process_errors():
            dist.broadcast_object_list(box)
    if not box[1]:
        raise SystemExit(2)
    result: T = box[0]
    return result


def on_first_rank(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that `run_on_first_rank` runs it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_on_first_rank(lambda: function(*args, **kwargs))

    return run


@lost_process_errors()
def all_gather(item: T) -> list[T]:
    """Return what every process has, in the order of their ranks."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


@lost_process_errors()
def any_rank(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    if world_size() == 1:
        return flag
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


@lost_process_errors()
def all_reduce_sum(numbers: Tensor) -> Tensor:
    """Sum a tensor over the processes; for gradients see `all_reduce_sum_with_gradient`."""
    if world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def all_reduce_sum_with_gradient(numbers: Tensor) -> Tensor:
    """Sum a tensor over the processes so that DistributedDataParallel's mean is the gradient.

    A loss computed from such sums is that of all processes' samples together, in each of them.
    """
    if world_size() == 1:
        return numbers
    result: Tensor = _Total.apply(numbers)
    return result


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, numbers: Tensor) -> Tensor:  # noqa: ARG004
        return all_reduce_sum(numbers.clone())

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG004
        # Each process's own samples give their part of the one gradient; the parts are to be
        # summed, and DistributedDataParallel takes their mean.
        return gradient * world_size()


@lost_process_errors()
def broadcast_buffers(net: nn.Module) -> None:
    """Give every process the first one's buffers, such as the statistics of batch norm."""
    if world_size() > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
