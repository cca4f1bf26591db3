"""Two processes on the CPU, as torchrun starts them, compared with one.

A start of torchrun takes 5 to 10 seconds: three processes import torch.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from helpers import assert_same_run, make_config, states_equal, write_instances, write_pairs
from PIL import Image
from torchvision.models import get_model

from unet.checkpoint import load_checkpoint
from unet.cli.main import main
from unet.config.values import config_to_dict
from unet.runtime import distributed
from unet.runtime.errors import LostProcessError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def config(data_root: Path, workdir: Path) -> Path:
    path = workdir / "tiny.yaml"
    # Group norm, as batch norm sees the samples of each process apart; some pixels do not count.
    settings = make_config(data_root, "model.norm=group", "optimizer={name: sgd, lr: 0.1}",
                           "train.batch_size=4", "train.accumulate=2", "data.ignore=[7]",
                           "loss.class_weights=[0.3, 1]", "train.steps_per_epoch=4",
                           "train.clip_grad_norm=1")  # fmt: skip
    path.write_text(yaml.safe_dump(config_to_dict(settings), sort_keys=False))
    return path


# Processes print the names of their threads after the functions that `initialize` registers, as
# `show` is registered first. Only the first process prints the exit codes.
SEVERAL_COMMANDS = """
import atexit, json, pathlib, sys

@atexit.register
def show() -> None:
    tasks = pathlib.Path("/proc/self/task").iterdir()  # Linux
    print("threads:", *((task / "comm").read_text().strip() for task in tasks), file=sys.__stdout__)

from unet.cli.main import main

for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    print("exit code", code)
"""


def torchrun(*commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run several commands of unet in two processes, which start once."""
    Path("commands.py").write_text(SEVERAL_COMMANDS)
    return subprocess.run(
        [*TORCHRUN, "commands.py", json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_one_process_waits_for_nothing() -> None:
    numbers = torch.tensor([1.0, 2.0], requires_grad=True)
    assert distributed.all_reduce_sum_with_gradient(numbers) is numbers
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    assert distributed.all_gather("a") == ["a"]
    assert distributed.on_first_rank(lambda: 7)() == 7
    assert distributed.shard("abc") == "abc"
    assert (distributed.rank(), distributed.world_size(), distributed.disable_progress()) == (
        0,
        1,
        None,
    )


def test_shards_contain_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts += distributed.shard(range(10))
    assert sorted(parts) == list(range(10))


def test_two_processes_train_score_and_predict_as_one(config: Path, data_root: Path) -> None:
    # More than 5 seconds: a start of torchrun, and three commands in two processes and in one.
    write_instances(data_root)
    with Image.open(data_root / "masks" / "2.png") as mask:  # one process has fewer pixels
        ids = np.array(mask)
    ids[:, :40] = 7
    Image.fromarray(ids).save(data_root / "masks" / "2.png")
    assert main(["train", str(config), "name=start", "train.epochs=1", "optimizer.lr=1e-9"]) == 0
    start = load_checkpoint(Path("runs/start/last.pt"))
    settings = "train.ema_decay=0.9", "data.instances=instances", "loss.border={sigma: 3}"
    for name in ("new", "damaged"):
        write_pairs(Path(name), 5, seed=3)
    write_instances(Path("new"))
    Path("damaged/images/2.png").write_bytes(b"damaged")
    arguments = ["--images", "new/images", "--masks", "new/masks", "--labels", "new/instances"]
    arguments += ["--threshold", "--instances"]

    def commands(model: str, number: int) -> list[list[str]]:
        return [
            ["train", str(config), f"name={model}", *settings],
            ["evaluate", "runs/two/best.pt", *arguments, "-o", f"scores{number}"],
            ["predict", "runs/two/best.pt", "damaged/images", "-o", f"masks{number}"],
        ]

    two = torchrun(*commands("two", 2))
    assert re.findall("exit code (.*)", two.stdout) == ["0", "0", "1"], two.stderr
    assert two.stdout.count("best mean IoU") == 1  # only the first prints
    assert [main(words) for words in commands("one", 1)] == [0, 0, 1]
    states = [load_checkpoint(Path("runs") / name / "last.pt") for name in ("one", "two")]
    for part in ("model", "raw_model"):
        for key, weights in states[0][part].items():
            torch.testing.assert_close(weights, states[1][part][key], rtol=1e-3, atol=1e-5)
    rows = [state["progress"]["history"] for state in states]
    for one, both in zip(*rows, strict=True):
        for key in set(one) - {"seconds"}:
            assert both[key] == pytest.approx(one[key], rel=2e-3), key
    assert not states_equal(states[0]["model"], start["model"])

    # Both score and predict as one does, each image once.
    reports = [json.loads(Path(f"scores{n}/metrics.json").read_text()) for n in (1, 2)]
    assert reports[0] == reports[1]
    assert sum(map(sum, reports[0]["confusion_matrix"])) == 5 * 36 * 52
    for name in ("per_image.csv", "thresholds.csv", "object_thresholds.csv", "confusion.png",
                 "report.html"):  # fmt: skip
        assert Path(f"scores1/{name}").read_bytes() == Path(f"scores2/{name}").read_bytes(), name

    assert two.stdout.count("predicted 4 of 5 images into masks2") == 1
    assert two.stderr.count("damaged/images/2.png: cannot be read") == 1
    for stem in "0134":
        masks = [Path(f"masks{n}/{stem}.png").read_bytes() for n in (1, 2)]
        assert masks[0] == masks[1]

    # A thread that releases a tensor while Python exits aborts the process: 3 times in 60 runs.
    if Path("/proc/self/task").is_dir():
        assert two.stdout.count("threads:") == 2
        assert "gloo" not in two.stdout


def test_two_processes_freeze_an_encoder_as_one_does(config: Path) -> None:
    torch.save(get_model("mobilenet_v3_large", weights=None).state_dict(), "weights.pth")
    overrides = ["model={encoder: mobilenet_v3_large, widths: [4, 4, 4, 4, 8], in_channels: 1, "
                 "norm: group}", "train.encoder_weights=weights.pth",
                 "train.freeze_encoder_epochs=1", "train.epochs=2"]  # fmt: skip
    result = torchrun(["train", str(config), *overrides, "name=two"])
    assert "exit code 0" in result.stdout, result.stderr
    assert main(["train", str(config), *overrides, "name=one"]) == 0
    one, two = (load_checkpoint(Path("runs") / name / "last.pt") for name in ("one", "two"))
    losses = [[row["train_loss"] for row in state["progress"]["history"]] for state in (one, two)]
    # Frozen batch norm has fixed statistics; later each process has those of its own samples.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.2)
    given = torch.load("weights.pth")["features.3.block.1.0.weight"]
    assert not torch.equal(two["model"]["encoder.backbone.features.3.block.1.0.weight"], given)


def test_wrong_input_is_reported_once(config: Path, data_root: Path) -> None:
    (data_root / "masks" / "3.png").write_bytes(b"damaged")
    wrong = (["train.epochs=many"], ["train.batch_size=3"], ["train.device=cuda:7"], [])
    result = torchrun(*(["train", str(config), *overrides] for overrides in wrong))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("exit code 2\n") == 4
    assert result.stderr.count("train.epochs=many: got the text 'many'") == 1
    assert result.stderr.count("got 3, expected a multiple of the 2 processes") == 1
    assert result.stderr.count("process 0: error: train.device: got 'cuda:7' for 2 processes") == 1
    assert result.stderr.count("train.device") == 1
    assert result.stderr.count("3.png: cannot be read") == 1
    assert not Path("runs/tiny").exists()


LONG = ("train.epochs=20", "train.save_every_steps=1", "train.validate_every=20")  # 80 steps


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def start_and_wait_for_a_checkpoint(
    config: Path, *options: str, minutes: str = "10"
) -> subprocess.Popen[str]:
    settings = ["name=two", *LONG, f"train.timeout_minutes={minutes}"]
    process = subprocess.Popen(
        [*TORCHRUN, *options, "-m", "unet", "train", str(config), *settings],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    last, end = Path("runs/two/last.pt"), time.monotonic() + 120
    while not last.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def test_a_run_restarts_by_itself_after_a_process_dies(config: Path) -> None:
    # Slow: three starts, and torchrun must notice that a process is gone.
    process = start_and_wait_for_a_checkpoint(config, "--max-restarts=1")
    begun = load_checkpoint(Path("runs/two/last.pt"))["progress"]["step"]
    victims = children(process.pid)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert "best mean IoU" in out
    state = load_checkpoint(Path("runs/two/last.pt"))
    assert state["progress"]["step"] == 80
    assert begun < 80
    assert out.count("results go to runs/two") == 2
    whole = torchrun(["train", str(config), "name=whole", *LONG])
    assert "exit code 0" in whole.stdout, whole.stderr
    assert_same_run(Path("runs/whole"), Path("runs/two"))


def test_without_restarts_a_lost_process_is_reported(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start_and_wait_for_a_checkpoint(config)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    start = time.monotonic()
    out, _ = process.communicate(timeout=100)
    assert time.monotonic() - start < 30
    assert process.returncode != 0
    assert "process 0: error: another process is gone" in out
    # The restart of another torchrun does not continue the run without --resume.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train", str(config), "name=two"]) == 2
    assert "runs/two: exists; pass --resume to continue it" in capsys.readouterr().err


def test_a_signal_to_torchrun_saves_the_step(config: Path) -> None:
    process = start_and_wait_for_a_checkpoint(config)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert "which is saved; pass --resume to continue" in out
    step = load_checkpoint(Path("runs/two/last.pt"))["progress"]["step"]
    assert f"stopped after step {step} of 80" in out


def test_a_stopped_process_is_named_by_the_others(config: Path) -> None:
    process = start_and_wait_for_a_checkpoint(config, minutes="0.05")
    assert process.stdout is not None
    victim = children(process.pid)[1]
    os.kill(victim, signal.SIGSTOP)
    start, message = time.monotonic(), "error: process 1 has not run for 0.05 minutes"
    try:
        assert any(message in line for line in process.stdout)
        assert time.monotonic() - start < 20
    finally:
        os.kill(victim, signal.SIGKILL)  # torchrun would wait for it for half a minute
    process.communicate(timeout=100)
    assert process.returncode != 0


def test_a_process_that_never_starts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    store = dist.HashStore()
    store.set("heartbeat/1", "0")
    with pytest.raises(LostProcessError, match=r"process 2 has not started within 0\.001 minutes"):
        distributed._start_heartbeat(store, 0.06)


class StoppedStore(dist.HashStore):
    """Of a process that is stopped, and later killed."""

    errors = iter((dist.DistStoreError("wait timeout"), RuntimeError("Connection reset by peer")))

    def get(self, key: str) -> bytes:  # noqa: ARG002
        raise next(self.errors)


def test_a_stopped_process_that_has_the_store_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())
    monkeypatch.setattr("atexit.register", lambda _: None)
    distributed._start_heartbeat(StoppedStore(), 0.06)
    assert ended.wait(10)
    assert "error: process 0 or torchrun on its machine has not run for" in capfd.readouterr().err


def test_gpus_without_nccl_as_on_windows_use_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(
        distributed, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 2)])
    )
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: started.append(backend))
    monkeypatch.setattr(distributed, "_start_heartbeat", lambda *_: None)
    monkeypatch.setattr("atexit.register", lambda _: None)
    for has_nccl in (True, False):
        monkeypatch.setattr(dist, "is_nccl_available", lambda has_nccl=has_nccl: has_nccl)
        distributed.initialize()
    assert started == ["cpu:gloo,cuda:nccl", "gloo"]
