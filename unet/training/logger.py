"""What a run shows of its progress: metrics.csv, curves.png, previews, entries of loggers."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from unet.config.schema import TrainConfig
from unet.data.classes import ClassMap
from unet.evaluation.scoring import PredictedImage
from unet.metrics.monitor import best_row, score_title
from unet.runtime.files import atomic_path, write_csv
from unet.runtime.notebook import in_notebook, show_picture
from unet.runtime.optional import is_installed
from unet.runtime.text import shorten
from unet.training.loggers import LOGGERS, Logger
from unet.visualize import draw_preview_sheet, save_picture


class RunLogger:
    """Logs to a run's folder and to `train.loggers`; to curves.png if Matplotlib is installed.

    A run that continues after `step` continues in its loggers.
    """

    def __init__(self, run: Path, classes: ClassMap, settings: TrainConfig, step: int = 0) -> None:
        self.run, self.classes, self.monitor = run, classes, settings.monitor
        self._loggers: dict[str, Logger] = {}
        self._warned: set[str] = set()
        loggers: Sequence[str] | None = settings.loggers
        if loggers is None:
            loggers = ["tensorboard"] if is_installed("tensorboard") else []
        for name in loggers:
            with self._warnings(name):
                config = (run / "config.yaml").read_text(encoding="utf-8")
                self._loggers[name] = LOGGERS[name](run, config, step)

    def step(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> None:
        """Log an update, counted from 1."""
        numbers = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": gradient_norm}
        named = {f"train/{name}": value for name, value in numbers.items()}
        for name, logger in list(self._loggers.items()):
            with self._warnings(name):
                logger.numbers(named, step)

    def validation(
        self, history: Sequence[dict[str, Any]], previews: Sequence[PredictedImage]
    ) -> None:
        """Log the last validation of the history, with some of its images."""
        row = history[-1]
        with self._warnings("metrics.csv"):
            write_csv(self.run / "metrics.csv", history)
        if is_installed("matplotlib"):
            with self._warnings("curves.png"):
                draw_curves(self.run / "curves.png", history, self.monitor, self.classes)
        sheet = None
        if previews:
            with self._warnings("previews"):
                sheet = draw_preview_sheet(previews, self.classes.names, self.classes.colours)
                (self.run / "previews").mkdir(exist_ok=True)
                save_picture(self.run / "previews" / f"epoch_{row['epoch']:04d}.png", sheet)
                if in_notebook():
                    show_picture(sheet, f"previews of {self.run.resolve()}")
        others = {"epoch", "step", "seconds", "lr", "train_loss"}
        scores = {f"validation/{k.removeprefix('val_')}": row[k] for k in row if k not in others}
        for name, logger in list(self._loggers.items()):
            with self._warnings(name):
                logger.numbers(scores, row["step"])
                if sheet is not None:
                    logger.picture(sheet, row["step"])

    def flush(self, is_complete: bool) -> None:
        """Write what has been logged, before a checkpoint: a resumed run logs only the rest.

        `is_complete` is False if a validation of this step follows.
        """
        for name, logger in list(self._loggers.items()):
            with self._warnings(name):
                logger.flush(is_complete)

    def close(self) -> None:
        """Close the loggers."""
        for name, logger in list(self._loggers.items()):
            with self._warnings(name):
                logger.close()

    @contextmanager
    def _warnings(self, name: str) -> Iterator[None]:
        """Warn, once for each name, if pictures and logs cannot be written; training goes on."""
        try:
            yield
        except Exception as error:  # of Matplotlib, Pillow or a logger, whatever their reason
            self._loggers.pop(name, None)
            if name not in self._warned:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                message = f"warning: {self.run / name}: cannot be written ({reason})"
                tqdm.write(f"{message}; training continues without it", file=sys.stderr)
            self._warned.add(name)


def load_extras() -> None:
    """Import the packages of pictures and logs: in a run, a signal would wait for their import."""
    if is_installed("matplotlib"):
        import matplotlib.figure  # noqa: F401
    if is_installed("tensorboard"):
        import torch.utils.tensorboard.writer  # noqa: F401


def draw_curves(
    path: Path, history: Sequence[dict[str, Any]], monitor: str, classes: ClassMap
) -> None:
    """Draw loss, scores and learning rate by epoch as a PNG; needs the extra plots.

    Each class has the colour that it has in the previews.
    """
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    names = [shorten(name, 30) for name in classes.names]
    title = score_title(monitor)
    longest = max(map(len, ("validation", title[:37], *(f"IoU of {name}" for name in names))))
    width = 7.1 + 0.1 * longest  # inches
    figure = Figure(figsize=(width, 9))
    loss, score, rate = figure.subplots(3, sharex=True, height_ratios=(3, 4, 2))
    # Fixed margins: computing a layout would delay each validation.
    figure.subplots_adjust(0.9 / width, right=6.4 / width, top=0.98, bottom=0.06, hspace=0.12)
    loss.plot(epochs, [row["train_loss"] for row in history], ".-", label="training")
    loss.set_ylabel("loss")
    if monitor in history[-1]:  # else there are no validation pairs
        loss.plot(
            epochs, [row.get("val_loss", math.nan) for row in history], ".-", label="validation"
        )
        loss.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        if len(classes.names) <= 12:
            for name, short, colour in zip(classes.names, names, classes.colours, strict=True):
                values, rgb = [row[f"iou_{name}"] for row in history], [x / 255 for x in colour]
                score.plot(epochs, values, color=rgb, linewidth=2, label=f"IoU of {short}")
        best = best_row(history, monitor)
        score.plot(epochs, [row[monitor] for row in history], "k.-", label=shorten(title, 37))
        score.plot(best["epoch"], best[monitor], "ko", fillstyle="none", markersize=12)
        score.set_title(
            f"best {title} {best[monitor]:.4f} in epoch {best['epoch']}", fontsize="medium"
        )
        score.set_ylabel("validation score")
        score.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    rate.plot(epochs, [row["lr"] for row in history], ".-")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    rate.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, score, rate):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
