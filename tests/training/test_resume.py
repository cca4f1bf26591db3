import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ENCODER, PAPER, assert_same_run, make_config, write_instances

from unet.checkpoint import load_checkpoint
from unet.config.schema import Config
from unet.config.values import config_to_dict
from unet.inference.predictor import Predictor
from unet.runtime.signals import Stopped
from unet.training.logger import RunLogger
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Send SIGTERM in each of these steps (counted from 1), once."""
    left, note = set(steps), RunLogger.step

    def step(tracker: RunLogger, number: int, *numbers: float) -> None:
        note(tracker, number, *numbers)
        if number in left:
            left.remove(number)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunLogger, "step", step)


def train_in_parts(config: Config) -> Path:
    """Train, and resume as often as a signal comes."""
    resume = False
    while True:
        try:
            return train(config, resume=resume)
        except Stopped:
            resume = True


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.previews=1"],
        ["train.num_workers=2"],
        pytest.param(["train.device=cuda", "train.deterministic=true"], marks=needs_cuda),
        pytest.param(
            ["train.device=cuda", "train.deterministic=true", "train.precision=bfloat16"],
            marks=needs_cuda,
        ),
        pytest.param(
            ["train.device=cuda", "train.deterministic=true", "train.precision=float16"],
            marks=needs_cuda,
        ),
        ["train.precision=bfloat16", "train.num_workers=1"],
        ["train.precision=float16", "optimizer.name=sgd"],
        ["train.accumulate=2", "train.clip_grad_norm=0.5", "train.ema_decay=0.9"],
        [
            "train.activation_checkpointing=true",
            "train.channels_last=false",
            "train.deterministic=true",
        ],
        ["train.steps_per_epoch=3", "schedule={name: plateau, patience: 0, factor: 0.5}"],
        [*PAPER, "optimizer={name: sgd, lr: 1e-3, momentum: 0.99}", "train.batch_size=1"],
        [*PAPER, "train.activation_checkpointing=true", "augment.crop=null"],
        [*PAPER, "data.instances=instances", "loss.border={sigma: 3}"],
        ["data.instances=instances", "loss={class_weights: balanced, border: {sigma: 3}}"],
    ],
    ids=[
        "plain",
        "workers",
        "cuda",
        "cuda bfloat16",
        "cuda float16",
        "bfloat16",
        "float16",
        "average",
        "recompute",
        "plateau",
        "paper",
        "paper without a crop",
        "paper with border weights",
        "border",
    ],
)
def test_a_run_stopped_within_epochs_equals_an_uninterrupted_one(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    write_instances(data_root)
    config = ["train.epochs=4", "schedule.warmup_epochs=1", *overrides]
    whole = train(make_config(data_root, "name=whole", *config))
    stop_at(monkeypatch, 1, 2, 3)
    parts = train_in_parts(make_config(data_root, "name=parts", *config))
    assert_same_run(whole, parts)


@pytest.mark.parametrize(("times", "validations"), [(1, 0), (4, 0), (5, 1)])
def test_a_signal_during_validation_ends_it(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, times: int, validations: int
) -> None:
    settings = "train.ema_decay=0.9", "data.validation={fraction: 0.66}"  # 4 of 6 pairs
    whole = train(make_config(data_root, "name=whole", *settings))
    count, logits = 0, Predictor.logits

    def stopping(model: Predictor, image: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == times:
            signal.raise_signal(signal.SIGTERM)
        return logits(model, image)

    monkeypatch.setattr(Predictor, "batch_size", lambda *_: 1)
    monkeypatch.setattr(Predictor, "logits", stopping)
    config = make_config(data_root, "name=parts", *settings)
    with pytest.raises(Stopped):
        train(config)
    state = load_checkpoint(Path("runs/parts/last.pt"))["progress"]
    assert (state["step"], len(state["history"])) == (validations + 1, validations)
    assert_same_run(whole, train(config, resume=True))


KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from unet.cli.main import main

left, save = 4, torch.save

def save_half(contents, file):
    global left
    save(contents, file)
    left -= ".next.pt." in file.name
    if left == 0:
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
main(["train", "tiny.yaml", "name=parts", "--resume"])
"""


def test_a_killed_run_equals_an_uninterrupted_one(data_root: Path) -> None:
    overrides = ["train.epochs=4", "train.save_every_steps=1", "train.num_workers=1",
                 "train.validate_every=2"]  # fmt: skip
    settings = config_to_dict(make_config(data_root, *overrides))
    Path("tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    process = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING], stdout=subprocess.DEVNULL)
    assert process.returncode == -signal.SIGKILL
    assert list(Path("runs/parts").glob(".next.pt.*.tmp"))
    assert load_checkpoint(Path("runs/parts/last.pt"))["progress"]["step"] == 3
    parts = train(make_config(data_root, "name=parts", *overrides), resume=True)
    assert_same_run(train(make_config(data_root, "name=whole", *overrides)), parts)
    assert not list(parts.rglob(".*.tmp"))


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_a_full_disk_leaves_the_last_good_checkpoint(data_root: Path, fraction: float) -> None:
    config = make_config(data_root, "train.save_every_steps=1", "train.ema_decay=0.9")
    size = (train(make_config(data_root, "name=other")) / "last.pt").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(_: RunLogger, step: int, *__: float) -> None:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(fraction * size), limits[1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogger, "step", fill_the_disk)
        try:
            with pytest.raises(OSError, match=r"File too large: 'runs/tiny/next\.pt'"):
                train(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(Path("runs/tiny/last.pt"))["progress"]["step"] == 2
    assert not list(Path("runs/tiny").rglob(".*.tmp"))
    run = train(config, resume=True)
    whole = train(
        make_config(data_root, "name=whole", "train.save_every_steps=1", "train.ema_decay=0.9")
    )
    assert_same_run(whole, run)


def test_resuming_keeps_the_normalization_to_the_last_digit(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data_root, "train.epochs=2")
    stop_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        train(config)
    last = Path("runs/tiny/last.pt")
    state = load_checkpoint(last)
    mean = torch.tensor(state["normalization"]["mean"])
    changed = tuple(mean.nextafter(mean + 1).tolist())
    state["normalization"]["mean"] = changed
    torch.save(state, last)
    train(config, resume=True)
    assert load_checkpoint(last)["progress"]["step"] == 4
    assert load_checkpoint(last)["normalization"]["mean"] == changed


def test_a_checkpoint_is_written_after_some_minutes(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def look(_: RunLogger, step: int, *__: float) -> None:
        if step > 1:
            steps.append(load_checkpoint(Path("runs/tiny/last.pt"))["progress"]["step"])

    monkeypatch.setattr(RunLogger, "step", look)
    overrides = ["train.epochs=1", "train.steps_per_epoch=4"]
    train(make_config(data_root, "train.save_every_minutes=0", *overrides))
    assert steps == [1, 2, 3]
    monkeypatch.undo()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_with_a_frozen_encoder_resumes_exactly(
    data_root: Path, encoder_weights: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    write_instances(data_root)
    overrides = [*ENCODER, f"train.encoder_weights={encoder_weights}", "train.epochs=3",
                 "train.freeze_encoder_epochs=1", f"optimizer.name={optimizer}",
                 "optimizer.encoder_lr=0.001", "train.ema_decay=0.9",
                 "train.activation_checkpointing=true",
                 "data.instances=instances", "loss.border={}"]  # fmt: skip
    whole = train(make_config(data_root, *overrides, "name=whole"))
    stop_at(monkeypatch, 1, 3)  # frozen, and not
    encoder_weights.rename("moved.pth")
    with pytest.raises(
        FileNotFoundError, match=r"train\.encoder_weights: there is no file weights"
    ):
        train(make_config(data_root, *overrides, "name=parts"))
    assert not Path("runs/parts").exists()
    Path("moved.pth").rename(encoder_weights)
    with pytest.raises(Stopped):
        train(make_config(data_root, *overrides, "name=parts"))
    encoder_weights.unlink()  # resuming does not need it
    resumed = False
    while not resumed:
        try:
            train(make_config(data_root, *overrides, "name=parts"), resume=True)
            resumed = True
        except Stopped:
            pass
    assert_same_run(whole, Path("runs/parts"))
    rates = [
        group["lr"] for group in load_checkpoint(whole / "last.pt")["optimizer"]["param_groups"]
    ]
    assert rates[1] == pytest.approx(rates[0] / 10)


def test_a_complete_run_that_is_resumed_keeps_its_last_checkpoint(data_root: Path) -> None:
    # As after a kill between the last step and its validation: no step sets the learning rate.
    config = make_config(data_root, "train.epochs=1")
    run = train(config)
    state = load_checkpoint(run / "last.pt")
    kept = [group["lr"] for group in state["optimizer"]["param_groups"]]
    state["progress"] |= {"history": [], "loss_sum": 1.0}
    torch.save(state, run / "last.pt")
    train(config, resume=True)
    groups = load_checkpoint(run / "last.pt")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == kept
