"""Progress bars in a terminal; elsewhere, such as in a log file, a line every few seconds."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from tqdm.auto import tqdm

from unet.runtime import distributed
from unet.runtime.notebook import in_notebook

T = TypeVar("T")

_SECONDS = 5.0  # between two lines
_NARROW = 60  # columns


class Progress:
    """Shows how many of so many items are done, as a context manager.

    Args:
        total: number of items.
        title: what is done, such as the name of a file; cut if it is long.
        unit: an item, in the singular.
        leave: whether the finished bar stays in the terminal.
        hide: whether nothing is shown, as in all processes but the first.
    """

    _last_line: ClassVar[float] = 0.0  # of all, as an item of one may have a progress of its own

    def __init__(
        self, total: int, title: str, unit: str, leave: bool = False, hide: bool = False
    ) -> None:
        self.total, self.title, self.unit = total, title, unit
        self._done, self._start = 0, time.monotonic()
        self._hide = hide or distributed.rank() > 0
        self._bar: tqdm[Any] | None = None
        if not self._hide and (sys.stderr.isatty() or in_notebook()):
            self._bar = _open_bar(total, title, unit, leave)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """Count items that are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if not self._hide and now - max(self._start, Progress._last_line) >= _SECONDS:
            Progress._last_line = now
            rate = self._done / (now - self._start)
            left = tqdm.format_interval((self.total - self._done) / rate)
            print(
                f"{self.title}: {self._done} of {self.total} {self.unit}s, {rate:.3g} "
                f"{self.unit}s/s, {left} left",
                file=sys.stderr,
                flush=True,
            )


def show_progress(
    items: Sequence[T], title: str, unit: str, leave: bool = False, hide: bool = False
) -> Iterator[T]:
    """Yield items and show a `Progress`."""
    with Progress(len(items), title, unit, leave, hide) as progress:
        for item in items:
            yield item
            progress.update()


def is_narrow() -> bool:
    """Whether a bar in the terminal has no room for the speed."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        columns = shutil.get_terminal_size().columns
    return columns < _NARROW


def _open_bar(total: int, title: str, unit: str, leave: bool) -> "tqdm[Any]":
    columns = shutil.get_terminal_size().columns
    speed = " {remaining}" if is_narrow() else " {rate_noinv_fmt}, {remaining} left"
    room = max(columns // 5, 8)
    bar: tqdm[Any] = tqdm(
        total=total,
        desc=title if len(title) <= room else f"{title[: room - 3]}...",
        unit=f" {unit}s",
        leave=leave,
        dynamic_ncols=True,
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar}|" + speed,
    )
    return bar
