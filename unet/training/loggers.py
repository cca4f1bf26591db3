"""The programs in which a run can be watched: TensorBoard, MLflow and Weights & Biases.

None of them sends anything to another machine unless its own environment variable says so.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image

from unet.runtime.optional import import_extra


class Logger(Protocol):
    """Takes what a run reports. `step` counts the updates so far, of all parts of the run."""

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""

    def flush(self) -> None:
        """Write what has been logged."""

    def close(self) -> None:
        """Write what has been logged; nothing follows."""


class TensorBoardLogger:
    """Writes to the run's folder tensorboard/; entries after `step` are forgotten."""

    def __init__(self, run: Path, config: str, step: int) -> None:
        import_extra("tensorboard", "train.loggers")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("config", f"```yaml\n{config}```", step)
        self.flush, self.close = self._writer.flush, self._writer.close

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""
        self._writer.add_image("previews", np.asarray(picture), step, dataformats="HWC")


class MLflowLogger:
    """Writes to mlruns/ beside the run's folder, or to MLFLOW_TRACKING_URI.

    A resumed run continues the latest MLflow run of its name.
    """

    def __init__(self, run: Path, config: str, step: int) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 prefers a database
        mlflow = import_extra("mlflow", "train.loggers", "loggers")
        folder = (run.parent / "mlruns").resolve().as_uri()
        client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", folder))
        found = client.get_experiment_by_name("unet")
        experiment = found.experiment_id if found else client.create_experiment("unet")
        name = f"attributes.run_name = '{run.name}'"
        runs = client.search_runs([experiment], name, max_results=1) if step else []
        info = (runs[0] if runs else client.create_run(experiment, run_name=run.name)).info
        self._client, self._run, self._metric = client, info.run_id, mlflow.entities.Metric
        self._waiting: list[Any] = []  # writing each update would delay it
        client.update_run(self._run, status="RUNNING")
        client.log_text(self._run, config, "config.yaml")

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        now = time.time_ns() // 10**6
        self._waiting += [self._metric(name, x, now, step) for name, x in numbers.items()]
        if len(self._waiting) > 500:  # a batch has at most 1000
            self.flush()

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""
        self._client.log_image(self._run, picture, f"previews/step_{step:07d}.png")

    def flush(self) -> None:
        """Write what has been logged."""
        waiting, self._waiting = self._waiting, []
        self._client.log_batch(self._run, waiting)

    def close(self) -> None:
        """Write what has been logged; nothing follows."""
        self.flush()
        self._client.set_terminated(self._run)


class WandbLogger:
    """Writes to the run's folder wandb/, and to the internet only if WANDB_MODE=online."""

    def __init__(self, run: Path, config: str, step: int) -> None:
        self._wandb = import_extra("wandb", "train.loggers", "loggers")
        earlier = sorted((run / "wandb").glob("*run-*-*")) if step else []
        self._run = self._wandb.init(
            project="unet",
            name=run.name,
            dir=str(run),
            id=earlier[-1].name.rpartition("-")[2] if earlier else None,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            config={"config.yaml": config},
            settings=self._wandb.Settings(
                console="off", silent=True, disable_git=True, x_disable_stats=True
            ),
        )

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        self._run.log(dict(numbers), step=step)

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""
        self._run.log({"previews": self._wandb.Image(picture)}, step=step)

    def flush(self) -> None:
        """Do nothing: another process writes."""

    def close(self) -> None:
        """Write what has been logged; nothing follows."""
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, str, int], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}
