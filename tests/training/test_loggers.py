import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import make_config

from unet.config.values import config_to_dict

TRAIN = """
import os, signal, sys, time
import unet.training.trainer as trainer
from unet import train

save = trainer.save_last

def save_or_die(run, contents):
    if contents["progress"]["step"] == int(sys.argv[1]):
        time.sleep(3)  # W&B writes in another process
        os.kill(os.getpid(), signal.SIGKILL)
    save(run, contents)

trainer.save_last = save_or_die
train("config.yaml", resume=True)
"""

READ = """
import json, os
os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
import mlflow

client = mlflow.MlflowClient(os.path.abspath("runs/mlruns"))
experiment = client.get_experiment_by_name("unet").experiment_id
runs = client.search_runs([experiment])
names = ("train/loss", "validation/mean_iou")
steps = lambda run, name: [one.step for one in client.get_metric_history(run.info.run_id, name)]
print(json.dumps([{name: steps(run, name) for name in names} for run in runs]))
print(json.dumps([run.info.status for run in runs]))
"""


def wandb_steps(path: Path) -> list[tuple[int, set[str]]]:
    """The step and the names of each row of a file of W&B: records in a log as LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record, rows = path.read_bytes(), 7, b"", []
    while place + 7 < len(data):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record, or its last part
            history = Record.FromString(record).history
            if history.item:
                names = {"/".join(item.nested_key) or item.key for item in history.item}
                rows.append((history.step.num, names))
            record = b""
    return rows


def test_a_run_that_is_killed_continues_in_mlflow_and_wandb_with_each_step_once(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Takes 25 seconds: two processes with both programs; the first is killed.
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    overrides = ("train.epochs=3", "train.loggers=[mlflow,wandb]", "train.save_every_steps=3")
    config = config_to_dict(make_config(data_root, *overrides))
    Path("config.yaml").write_text(yaml.safe_dump(config))

    def run(*command: str) -> Any:
        return subprocess.run([sys.executable, "-c", *command], capture_output=True, text=True)

    assert run(TRAIN, "4").returncode == -signal.SIGKILL  # what it logged is ahead of last.pt
    resumed = run(TRAIN, "-1")
    assert "resuming after step 3" in resumed.stdout
    assert "cannot be written" not in resumed.stderr
    (steps,), (status,) = map(json.loads, run(READ).stdout.splitlines())
    assert steps == {"train/loss": [1, 2, 3, 4, 5, 6], "validation/mean_iou": [2, 4, 6]}
    assert status == "FINISHED"
    files = sorted(Path("runs/tiny/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # one run
    rows = [row for file in files for row in wandb_steps(file)]
    assert [step for step, names in rows if "train/loss" in names] == [1, 2, 3, 4, 5, 6]
    assert [step for step, names in rows if "validation/mean_iou" in names] == [2, 4, 6]
