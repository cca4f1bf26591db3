"""What a run leaves to look at: metrics.csv, curves.png, previews and TensorBoard's files."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unet.build import build_classes
from unet.config.schema import Config
from unet.config.values import config_to_dict
from unet.evaluation.scoring import PredictedImage
from unet.runtime.files import atomic_path
from unet.visualize import draw_preview_sheet, save_picture


class RunLogger:
    """Writes into a run's folder; TensorBoard and curves where their extras are installed.

    Args:
        run: the folder.
        config: of the run.
        step: updates made so far; what TensorBoard was told of later ones is void.
    """

    def __init__(self, run: Path, config: Config, step: int) -> None:
        self.run = run
        self.classes = build_classes(config)
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
            settings = yaml.safe_dump(config_to_dict(config), sort_keys=False)
            self._writer.add_text("config", f"```yaml\n{settings}```", step)

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        """TensorBoard's thread leaves its errors without a name."""
        try:
            yield
        except OSError as error:
            where = str(self.run / "tensorboard")
            raise OSError(error.errno, error.strerror, where) from error

    def step(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> None:
        """Note an update, the first of which has the number 1."""
        if self._writer is not None:
            with self._naming_the_folder():
                self._writer.add_scalar("train/loss", loss, step)
                self._writer.add_scalar("train/learning_rate", learning_rate, step)
                self._writer.add_scalar("train/gradient_norm", gradient_norm, step)

    def validation(
        self, history: Sequence[dict[str, Any]], previews: Sequence[PredictedImage]
    ) -> None:
        """Note a validation, the last of the rows, and draw some of its images."""
        row = history[-1]
        with (
            atomic_path(self.run / "metrics.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(history[0]))
            writer.writeheader()
            writer.writerows(history)
        if find_spec("matplotlib") is not None:
            draw_curves(self.run / "curves.png", history)
        if previews:
            sheet = draw_preview_sheet(previews, self.classes.names, self.classes.colours)
            save_picture(self.run / "previews" / f"epoch_{row['epoch']:04d}.png", sheet)
        if self._writer is not None:
            with self._naming_the_folder():
                for name in set(row) - {"epoch", "step", "seconds", "lr", "train_loss"}:
                    self._writer.add_scalar(f"validation/{name}", row[name], row["step"])
                if previews:
                    picture = np.asarray(sheet)
                    self._writer.add_image("previews", picture, row["step"], dataformats="HWC")
                self._writer.flush()

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._writer is not None:
            # On a full disk there is something else to be told; what matters was flushed before.
            with suppress(OSError):
                self._writer.close()


def draw_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Draw loss, scores and learning rate over the epochs as a PNG; needs the extra plots."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(8, 9))
    loss, score, rate = figure.subplots(3, sharex=True, height_ratios=(3, 4, 2))
    # By hand, as every validation would wait for a layout to be solved.
    figure.subplots_adjust(left=0.11, right=0.8, top=0.98, bottom=0.06, hspace=0.12)
    loss.plot(epochs, [row["train_loss"] for row in history], ".-")
    loss.set_ylabel("training loss")
    names = [name for name in history[0] if name.startswith("iou_")]
    for name in names if len(names) <= 12 else ():
        scores = [row[name] for row in history]
        score.plot(epochs, scores, "-", linewidth=1, label=name.removeprefix("iou_"))
    means = [row["mean_iou"] for row in history]
    score.plot(epochs, means, "k.-", label="mean")
    best = int(np.argmax(means))
    score.plot(epochs[best], means[best], "ko", fillstyle="none", markersize=12)
    score.set_title(f"best mean IoU {means[best]:.4f} in epoch {epochs[best]}", fontsize="medium")
    score.set_ylabel("validation IoU")
    score.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    rate.plot(epochs, [row["lr"] for row in history], ".-")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    rate.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, score, rate):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
