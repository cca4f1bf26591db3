"""Two processes on the CPU, as torchrun starts them, compared with one.

A start of torchrun takes 5 to 10 seconds, because three processes import torch: what does not end
the processes shares one start.
"""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
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

pytestmark = pytest.mark.usefixtures("_in_folder")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

TRAIN = ["train", "tiny.yaml"]
SETTINGS = (
    # Group norm, as batch norm sees the samples of each process apart; some pixels do not count.
    "model.norm=group", "optimizer={name: sgd, lr: 0.1}", "train.batch_size=4",
    "train.accumulate=2", "data.ignore=[7]", "loss.class_weights=[0.3, 1]",
    "train.steps_per_epoch=4", "train.clip_grad_norm=1",
)  # fmt: skip
LONG = ("train.epochs=20", "train.save_every_steps=1", "train.validate_every=20")  # 80 steps
FROZEN = (
    "model={encoder: mobilenet_v3_large, widths: [4, 4, 4, 4, 8], in_channels: 1, norm: group}",
    "train.encoder_weights=weights.pth", "train.freeze_encoder_epochs=1", "train.epochs=2",
    "train.steps_per_epoch=2",
)  # fmt: skip
WRONG = ("train.epochs=many", "train.batch_size=3", "train.device=cuda:7", "data.root=broken")


def comparable(name: str) -> list[list[str]]:
    """Commands for two processes and for one, with the name of their results."""
    borders = "train.ema_decay=0.9", "data.instances=instances", "loss.border={sigma: 3}"
    new = ["--images", "new/images", "--masks", "new/masks", "--labels", "new/instances",
           "--threshold", "--instances"]  # fmt: skip
    return [
        [*TRAIN, f"name={name}", *borders],
        [*TRAIN, f"name=frozen_{name}", *FROZEN],
        ["evaluate", "runs/two/best.pt", *new, "-o", f"scores/{name}"],
        ["predict", "runs/two/best.pt", "damaged/images", "-o", f"masks/{name}", "--uncertainty"],
    ]


# Processes print the names of their threads after the functions that `initialize` registers, as
# `show` is registered first. Only the first process prints the exit codes.
SEVERAL_COMMANDS = """
import atexit, json, os, pathlib, sys, time

if os.environ["RANK"] == "1":  # its clock is fast: it must not decide alone how long to time steps
    clock = time.monotonic
    time.monotonic = lambda: 5 * clock()

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, data, and files for `comparable`."""
    folder = tmp_path_factory.mktemp("distributed")
    with contextlib.chdir(folder):
        write_pairs(Path("data"), 6)
        write_instances(Path("data"))
        with Image.open("data/masks/2.png") as mask:  # one process has fewer pixels
            ids = np.array(mask)
        ids[:, :40] = 7
        Image.fromarray(ids).save("data/masks/2.png")
        shutil.copytree("data", "broken")
        Path("broken/masks/3.png").write_bytes(b"damaged")
        for name in ("new", "damaged"):
            write_pairs(Path(name), 5, seed=3)
        write_instances(Path("new"))
        Path("damaged/images/2.png").write_bytes(b"damaged")
        settings = config_to_dict(make_config(Path("data"), *SETTINGS))
        Path("tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        torch.save(get_model("mobilenet_v3_large", weights=None).state_dict(), "weights.pth")
        Path("commands.py").write_text(SEVERAL_COMMANDS)
    return folder


@pytest.fixture
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def two(folder: Path) -> subprocess.CompletedProcess[str]:
    """Several commands of unet in two processes, which start once."""
    *others, predict = comparable("two")
    wrong = [[*TRAIN, "name=wrong", one] for one in WRONG]
    commands = [*wrong, *others, [*TRAIN, "name=whole", *LONG], predict]
    return subprocess.run(
        [*TORCHRUN, "commands.py", json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def one(two: subprocess.CompletedProcess[str], folder: Path) -> list[int]:
    """The exit codes of the same commands in this process."""
    assert two.returncode == 0, two.stderr
    with contextlib.chdir(folder):
        return [main(words) for words in comparable("one")]


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


# The first of the tests that need two processes waits for all of their commands.
def test_every_command_of_two_processes_has_the_exit_code_of_one(
    two: subprocess.CompletedProcess[str], one: list[int]
) -> None:
    codes = re.findall("exit code (.*)", two.stdout)
    assert codes == ["2", "2", "2", "2", "0", "0", "0", "0", "1"], two.stderr
    assert one == [0, 0, 0, 1]
    assert two.stdout.count("best mean IoU") == 3  # only the first prints

    # A thread that releases a tensor while Python exits aborts the process: 3 times in 60 runs.
    if Path("/proc/self/task").is_dir():
        assert two.stdout.count("threads:") == 2
        assert "gloo" not in two.stdout


@pytest.mark.usefixtures("one")
def test_two_processes_train_as_one() -> None:
    states = [load_checkpoint(Path("runs") / name / "last.pt") for name in ("one", "two")]
    for part in ("model", "raw_model"):
        for key, weights in states[0][part].items():
            torch.testing.assert_close(weights, states[1][part][key], rtol=1e-3, atol=1e-5)
    rows = [state["progress"]["history"] for state in states]
    for alone, both in zip(*rows, strict=True):
        for key in set(alone) - {"seconds"}:
            assert both[key] == pytest.approx(alone[key], rel=2e-3), key
    assert main([*TRAIN, "name=start", "train.epochs=1", "optimizer.lr=1e-9"]) == 0
    start = load_checkpoint(Path("runs/start/last.pt"))
    assert not states_equal(states[0]["model"], start["model"])


@pytest.mark.usefixtures("one")
def test_two_processes_score_and_predict_as_one_each_image_once(
    two: subprocess.CompletedProcess[str],
) -> None:
    reports = [json.loads(Path(f"scores/{n}/metrics.json").read_text()) for n in ("one", "two")]
    assert reports[0] == reports[1]
    assert sum(map(sum, reports[0]["confusion_matrix"])) == 5 * 36 * 52
    for name in ("per_image.csv", "thresholds.csv", "object_thresholds.csv", "confusion.png",
                 "report.html"):  # fmt: skip
        assert Path("scores/one", name).read_bytes() == Path("scores/two", name).read_bytes(), name

    assert two.stdout.count("predicted 4 of 5 images into masks/two") == 1
    assert two.stderr.count("damaged/images/2.png: cannot be read") == 1
    for stem in "0134":
        masks = [Path(f"masks/{n}/{stem}.png").read_bytes() for n in ("one", "two")]
        assert masks[0] == masks[1]
    tables = [Path(f"masks/{n}/uncertain.csv").read_text() for n in ("one", "two")]
    assert tables[0] == tables[1]
    assert tables[0].count("images/") == 4


@pytest.mark.usefixtures("one")
def test_two_processes_freeze_an_encoder_as_one_does() -> None:
    names = "frozen_one", "frozen_two"
    alone, both = (load_checkpoint(Path("runs") / name / "last.pt") for name in names)
    losses = [[row["train_loss"] for row in one["progress"]["history"]] for one in (alone, both)]
    # Frozen batch norm has fixed statistics; later each process has those of its own samples.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.2)
    given = torch.load("weights.pth")["features.3.block.1.0.weight"]
    assert not torch.equal(both["model"]["encoder.backbone.features.3.block.1.0.weight"], given)


def test_wrong_input_is_reported_once(two: subprocess.CompletedProcess[str]) -> None:
    assert two.stderr.count("train.epochs=many: got the text 'many'") == 1
    assert two.stderr.count("got 3, expected a multiple of the 2 processes") == 1
    assert two.stderr.count("process 0: error: train.device: got 'cuda:7' for 2 processes") == 1
    assert two.stderr.count("train.device") == 1
    assert two.stderr.count("broken/masks/3.png: cannot be read") == 1
    assert not Path("runs/wrong").exists()


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def start_and_wait_for_a_checkpoint(name: str, *options: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*TORCHRUN, *options, "-m", "unet", *TRAIN, f"name={name}", *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    last, end = Path("runs", name, "last.pt"), time.monotonic() + 300
    while not last.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


# Slow: two starts, and torchrun must notice that a process is gone.
@pytest.mark.usefixtures("two")
def test_a_lost_process_is_reported_and_the_run_restarts_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start_and_wait_for_a_checkpoint("restarted", "--max-restarts=1")
    assert process.stdout is not None
    begun = load_checkpoint(Path("runs/restarted/last.pt"))["progress"]["step"]
    victims = children(process.pid)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    start, lines = time.monotonic(), []
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if "process 0: error: another process is gone" in line:
                assert time.monotonic() - start < 30
                break
        out = "".join([*lines, *process.stdout])
    assert process.wait(200) == 0, out
    assert "process 0: error: another process is gone" in out
    assert "best mean IoU" in out
    state = load_checkpoint(Path("runs/restarted/last.pt"))
    assert state["progress"]["step"] == 80
    assert begun < 80
    assert out.count("results go to runs/restarted") == 2
    assert_same_run(Path("runs/whole"), Path("runs/restarted"))

    # The restart of another torchrun does not continue the run without --resume.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main([*TRAIN, "name=restarted"]) == 2
    assert "runs/restarted: exists; pass --resume to continue it" in capsys.readouterr().err


def test_a_signal_to_torchrun_saves_the_step() -> None:
    process = start_and_wait_for_a_checkpoint("signalled")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert "which is saved; pass --resume to continue" in out
    step = load_checkpoint(Path("runs/signalled/last.pt"))["progress"]["step"]
    assert f"stopped after step {step} of 80" in out


def wait_for_the_other(rank: int, port: int) -> None:
    """One of two processes; the second one stops."""
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    values = rank, rank, 2, 2, "127.0.0.1", port
    os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
    sys.stderr = Path(f"stderr{rank}").open("w")  # noqa: SIM115
    distributed.initialize(timeout_minutes=0.05)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.all_gather("a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_stopped_process_is_named_by_the_others() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # without a second import of torch
    processes = [context.Process(target=wait_for_the_other, args=(i, port)) for i in range(2)]
    for process in processes:
        process.start()
    try:
        processes[0].join(30)
        assert processes[0].exitcode == 2
    finally:
        for process in processes:
            process.kill()
            process.join()
    message = "process 0: error: process 1 has not run for 0.05 minutes (train.timeout_minutes)"
    assert message in Path("stderr0").read_text()


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
