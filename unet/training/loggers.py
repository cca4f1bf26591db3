"""The programs in which a run can be watched: TensorBoard, MLflow and Weights & Biases.

None of them sends anything to another machine unless its own environment variable says so.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image

from unet.runtime.optional import import_extra

_FLUSH_SECONDS = 0.1


class Logger(Protocol):
    """Takes what a run reports. `step` counts the updates so far, of all parts of the run."""

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""

    def flush(self, is_complete: bool) -> None:
        """Write what has been logged; `is_complete` if no numbers of the last step follow."""

    def close(self) -> None:
        """Write what has been logged; nothing follows."""


class TensorBoardLogger:
    """Writes to the run's folder tensorboard/; entries after `step` are forgotten."""

    def __init__(self, run: Path, config: str, step: int) -> None:
        import_extra("tensorboard", "train.loggers")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("config", f"```yaml\n{config}```", step)
        self.close = self._writer.close

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""
        self._writer.add_image("previews", np.asarray(picture), step, dataformats="HWC")

    def flush(self, is_complete: bool) -> None:  # noqa: ARG002
        """Write what has been logged."""
        self._writer.flush()


class MLflowLogger:
    """Writes to mlruns/ beside the run's folder, or to MLFLOW_TRACKING_URI.

    A resumed run continues its MLflow run. Numbers that it had logged before are left out.
    """

    def __init__(self, run: Path, config: str, step: int) -> None:
        # MLflow 3 prefers a database, and reports to its authors that it is used.
        for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
            os.environ.setdefault(name, "true")
        mlflow = import_extra("mlflow", "train.loggers", "loggers")
        folder = (run.parent / "mlruns").resolve().as_uri()
        client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", folder))
        id_file = run / "mlflow_run_id.txt"
        if not step or not id_file.exists():
            found = client.get_experiment_by_name("unet")
            experiment = found.experiment_id if found else client.create_experiment("unet")
            id_file.write_text(client.create_run(experiment, run_name=run.name).info.run_id)
        self._client, self._run, self._metric = client, id_file.read_text(), mlflow.entities.Metric
        self._logged = {
            name: max(one.step for one in client.get_metric_history(self._run, name))
            for name in client.get_run(self._run).data.metrics
        }
        self._waiting: list[Any] = []  # writing each update would delay it
        client.update_run(self._run, status="RUNNING")
        client.log_text(self._run, config, "config.yaml")

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        now = time.time_ns() // 10**6
        self._waiting += [
            self._metric(name, value, now, step)
            for name, value in numbers.items()
            if step > self._logged.get(name, 0)
        ]
        if len(self._waiting) > 500:  # a batch has at most 1000
            self.flush(False)

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""
        self._client.log_image(self._run, picture, f"previews/step_{step:07d}.png")

    def flush(self, is_complete: bool) -> None:  # noqa: ARG002
        """Write what has been logged."""
        waiting, self._waiting = self._waiting, []
        self._client.log_batch(self._run, waiting)

    def close(self) -> None:
        """Write what has been logged; nothing follows."""
        self.flush(True)
        self._client.set_terminated(self._run)


class WandbLogger:
    """Writes to the run's folder wandb/, and to the internet only if WANDB_MODE=online.

    A resumed run continues its run. Numbers that it had logged before are left out.
    """

    def __init__(self, run: Path, config: str, step: int) -> None:
        if (mode := os.environ.get("WANDB_MODE", "offline")) == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = import_extra("wandb", "train.loggers", "loggers")
        earlier = sorted((run / "wandb").glob("*run-*-*")) if step else []
        self._run = self._wandb.init(
            project="unet",
            name=run.name,
            dir=str(run),
            id=earlier[-1].name.rpartition("-")[2] if earlier else None,
            resume="allow",
            mode=mode,
            config={"config.yaml": config},
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                x_disable_stats=True,
                x_transaction_log_flush_interval=_FLUSH_SECONDS,
            ),
        )
        self._file = run / "wandb" / "logged.json"  # the last step of each number
        self._logged: dict[str, int] = {}
        if step and self._file.exists():
            self._logged = json.loads(self._file.read_text())

    def numbers(self, numbers: Mapping[str, Any], step: int) -> None:
        """Log numbers by name."""
        new = {name: x for name, x in numbers.items() if step > self._logged.get(name, 0)}
        if new:
            self._run.log(new, step=step)
        self._logged |= dict.fromkeys(new, step)

    def picture(self, picture: Image, step: int) -> None:
        """Log the previews of a validation."""
        self.numbers({"previews": self._wandb.Image(picture)}, step)

    def flush(self, is_complete: bool) -> None:
        """Wait until another process has written what has been logged."""
        if is_complete:
            self._run.log({}, commit=True)  # the row of the last step
        time.sleep(2 * _FLUSH_SECONDS)
        self._file.write_text(json.dumps(self._logged))

    def close(self) -> None:
        """Write what has been logged; nothing follows."""
        self.flush(True)
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, str, int], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}
