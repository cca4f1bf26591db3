"""Rank, world size and collectives of the processes that torchrun starts.

With one process, collectives return their argument.
"""

import atexit
import functools
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch

# DistributedDataParallel would import it when there is a process group, keep the group as a default
# argument, and so its threads: one that releases a tensor while Python exits aborts the process.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from unet.runtime.errors import LostProcessError

T = TypeVar("T")
P = ParamSpec("P")

# Messages of gloo and nccl when another process has ended.
_LOST_PROCESS = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|remote process exited|NCCL error", re.IGNORECASE
)


def rank() -> int:
    """Return the index of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the index of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def disable_progress() -> bool | None:
    """Return tqdm's `disable`: only the first process may draw a progress bar."""
    return True if rank() else None


_store: Store | None = None
"""What the processes share; it belongs to the process, as the process group does."""


def initialize(timeout_minutes: float = 10.0) -> None:
    """Join the process group, once; with gloo for CPUs and, where there is nccl, nccl for GPUs.

    From now on each process ends with a message as soon as another has not run for
    `timeout_minutes`. A process that computes or reads for longer is not meant: its heartbeat goes
    on.

    Raises:
        LostProcessError: if a process does not start within this time.
    """
    global _store
    if world_size() > 1 and not dist.is_initialized():
        has_nccl = torch.cuda.is_available() and dist.is_nccl_available()  # not on Windows
        backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
        store: Store
        try:
            limit = timedelta(minutes=timeout_minutes)
            store, number, count = next(rendezvous("env://", timeout=limit))
        except RuntimeError as error:
            raise LostProcessError(
                f"cannot join the other processes within {timeout_minutes:g} minutes "
                f"(train.timeout_minutes): {str(error).splitlines()[0]}"
            ) from error
        # After a restart, torchrun's store still has the addresses of the ended processes. (Several
        # machines may have different numbers of restarts.)
        if local_world_size() == world_size():
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(attempt, store)
        _store = store
        _start_heartbeat(store.clone(), 60 * timeout_minutes)
        timeout = timedelta(hours=2)  # the first may read a large data set
        dist.init_process_group(
            backend, timeout=timeout, store=store, rank=number, world_size=count
        )
        atexit.register(dist.destroy_process_group)


def is_reported(error: str) -> bool:
    """Whether the first process shows the same error at the same time."""
    if _store is None:
        return rank() > 0  # before the processes have joined, all have the same errors
    try:
        if rank() == 0:
            _store.set(f"error/{error}", "")
        else:
            _store.wait([f"error/{error}"], timedelta(seconds=2))
    except RuntimeError:  # the first has another error, or has ended
        return False
    return rank() > 0


def _start_heartbeat(store: Store, timeout: float) -> None:
    """Count in the store while this process runs, and look whether the others do."""
    store.set_timeout(timedelta(seconds=timeout))
    store.set(f"heartbeat/{rank()}", "0")
    for other in range(world_size()):
        try:
            store.wait([f"heartbeat/{other}"])
        except RuntimeError as error:
            raise LostProcessError(
                f"process {other} has not started within {timeout / 60:g} minutes "
                "(train.timeout_minutes)"
            ) from error
    ended = threading.Event()

    def watch() -> None:
        seen = {other: (b"0", time.monotonic()) for other in range(world_size())}
        for count in itertools.count(1):
            if ended.wait(timeout / 6):
                return
            try:
                store.set(f"heartbeat/{rank()}", str(count))
                beats = {other: store.get(f"heartbeat/{other}") for other in seen}
            except dist.DistStoreError:  # no answer: what has the store was stopped
                silent = ["0 or torchrun on its machine"]
            except RuntimeError:  # torchrun or the process with the store has ended
                return
            else:
                now = time.monotonic()
                seen = {i: seen[i] if beats[i] == seen[i][0] else (beats[i], now) for i in seen}
                silent = [str(i) for i, (_, since) in seen.items() if now - since > timeout]
            if silent and not ended.is_set():
                # The main thread waits within torch, where no exception can reach it.
                print(
                    f"process {rank()}: error: process {', '.join(silent)} has not run for "
                    f"{timeout / 60:g} minutes (train.timeout_minutes), and this one ends with it",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join(1)

    atexit.register(end)


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Raise `LostProcessError` if another process ends while the block runs."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _LOST_PROCESS.search(str(error)):
            raise
        raise LostProcessError(
            "another process is gone, and this one ends with it; see the other's message"
        ) from error


def check_single(name: str) -> None:
    """Raise ValueError if torchrun has started several processes.

    `name` is what only one of them can do.
    """
    if world_size() > 1:
        raise ValueError(
            f"{name}: got {world_size()} processes, expected one; start it without torchrun"
        )


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return the items of this process; each item belongs to one process."""
    return items[rank() :: world_size()]


def on_first_rank(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to run in the first process only and return its result in all.

    If it raises an exception, the other processes raise SystemExit.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if world_size() == 1:
            return function(*args, **kwargs)
        message: list[Any] = [None, False]
        try:
            if rank() == 0:
                message = [function(*args, **kwargs), True]
        finally:
            with lost_process_errors():
                dist.broadcast_object_list(message)
        if not message[1]:
            raise SystemExit(2)
        result: T = message[0]
        return result

    return run


@lost_process_errors()
def all_gather(item: T) -> list[T]:
    """Return the items of all processes, ordered by rank."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


@lost_process_errors()
def any_rank(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    if world_size() == 1:
        return flag
    maximum = torch.tensor(int(flag))
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return bool(maximum)


@lost_process_errors()
def all_reduce_sum(numbers: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place and without gradient."""
    if world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def all_reduce_sum_with_gradient(numbers: Tensor) -> Tensor:
    """Sum a tensor over the processes, with a gradient for DistributedDataParallel.

    A loss computed from such sums is the loss of the samples of all processes. In
    `torch.inference_mode`, each process has the loss of its own samples.
    """
    if world_size() == 1 or not torch.is_grad_enabled():
        return numbers
    result: Tensor = _AllReduceSum.apply(numbers)
    return result


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, numbers: Tensor) -> Tensor:  # noqa: ARG004
        return all_reduce_sum(numbers.clone())

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG004
        # The gradients of the processes must be summed; DistributedDataParallel takes their mean.
        return gradient * world_size()


@lost_process_errors()
def broadcast_buffers(net: nn.Module) -> None:
    """Copy buffers, such as batch norm statistics, from the first process to all."""
    if world_size() > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
