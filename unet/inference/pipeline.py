"""Read, compute and write many items: reading and writing overlap with the computation."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")

# Items that are read and not computed, or computed and not written; of large arrays only one.
_AHEAD, _LARGE_BYTES = 4, 2**24


def run_pipeline(
    items: Iterable[Item],
    read: Callable[[Item], Any],
    compute: Callable[[Item, Any], Any],
    write: Callable[[Item, Any], Any],
    skips: tuple[type[Exception], ...],
) -> Generator[tuple[Item, Any, BaseException | None]]:
    """Yield each item in order with the result of `write`, or with the error of any of the three.

    `read` and `write` run in a thread each, `compute` in this one. An error of another type than
    `skips` ends the pipeline: no later item is written. Close the iterator to wait for the threads.
    """
    reader, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    rest, is_broken = iter(items), False

    def write_next(item: Item, result: Any) -> Any:
        nonlocal is_broken
        if is_broken:
            raise CancelledError
        try:
            return write(item, result)
        except skips:
            raise
        except BaseException:
            is_broken = True
            raise

    reads = deque((item, reader.submit(read, item)) for item in islice(rest, 1))
    writes: deque[tuple[Item, Future[Any]]] = deque()
    try:
        while reads:
            item, reading = reads.popleft()
            is_large = getattr(reading.exception() or reading.result(), "nbytes", 0) > _LARGE_BYTES
            ahead = 1 if is_large else _AHEAD
            missing = max(ahead - len(reads), 0)
            reads.extend((one, reader.submit(read, one)) for one in islice(rest, missing))
            try:
                result = compute(item, reading.result())
                writes.append((item, writer.submit(write_next, item, result)))
                del result
            except Exception as error:
                writes.append((item, Future()))
                writes[-1][1].set_exception(error)
            del reading
            while writes and (len(writes) > ahead or writes[0][1].done()):
                yield _finished(*writes.popleft())
        while writes:
            yield _finished(*writes.popleft())
    finally:
        for pool in (reader, writer):
            pool.shutdown(cancel_futures=True)


def _finished(item: Item, future: "Future[Any]") -> tuple[Item, Any, BaseException | None]:
    error = future.exception()
    return item, None if error else future.result(), error
