import threading
import time
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from unet.inference.pipeline import run_pipeline


def outcomes(*arguments: Any) -> list[tuple[Any, Any, str]]:
    with closing(run_pipeline(*arguments, (ValueError,))) as results:
        return [(item, result, repr(error or "")) for item, result, error in results]


def test_reading_and_writing_overlap_with_the_computation_and_keep_the_order() -> None:
    events: list[str] = []
    main = threading.get_ident()
    started = [threading.Event() for _ in range(6)]

    def read(i: int) -> int:
        assert threading.get_ident() != main
        started[i].set()
        return 10 * i

    def compute(i: int, value: int) -> int:
        assert threading.get_ident() == main
        if i < 5:
            assert started[i + 1].wait(5)  # the next item is read during the computation
        return value + 1

    def write(i: int, value: int) -> int:
        assert threading.get_ident() != main
        events.append(f"write {i}")
        return value

    assert outcomes(range(6), read, compute, write) == [(i, 10 * i + 1, "''") for i in range(6)]
    assert events == [f"write {i}" for i in range(6)]


@pytest.mark.parametrize(("num_bytes", "most"), [(8, 5), (2**25, 2)])
def test_few_items_are_read_ahead_and_of_large_arrays_only_one(num_bytes: int, most: int) -> None:
    counts, ahead = [0], []

    def read(_: int) -> np.ndarray:
        counts[0] += 1
        return np.empty(num_bytes, np.uint8)

    def compute(i: int, _: np.ndarray) -> int:
        time.sleep(0.03)
        ahead.append(counts[0] - i)
        return i

    outcomes(range(9), read, compute, lambda _, value: value)
    assert max(ahead) == most


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_error_of_any_stage_belongs_to_its_item_and_the_others_go_on(stage: int) -> None:
    def fail_at(here: int) -> Any:
        def run(i: int, *values: int) -> int:
            if here == stage and i == 2:
                raise ValueError(i)
            return values[0] + 1 if values else 0

        return run

    expected = [(i, None if i == 2 else 2, "ValueError(2)" if i == 2 else "''") for i in range(5)]
    assert outcomes(range(5), *map(fail_at, range(3))) == expected


def test_nothing_is_written_after_an_error_that_ends_the_work() -> None:
    written = []

    def write(i: int, _: int) -> None:
        if i == 1:
            raise OSError(28, "full")
        written.append(i)

    with closing(
        run_pipeline(range(9), lambda i: i, lambda _, value: value, write, (ValueError,))
    ) as results:
        errors = [error for _, _, error in results]
    assert written == [0]
    assert isinstance(errors[1], OSError)
    assert all(errors[1:])
