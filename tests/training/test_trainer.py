import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import make_config, states_equal

import unet.training.trainer
from unet import load_model
from unet.build import build_network
from unet.checkpoint import load_checkpoint
from unet.config.schema import Config
from unet.data.sampler import SeededBatchSampler
from unet.models.unet import UNet
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def test_numbers_that_are_not_finite_stop_the_run_before_the_update(data_root: Path) -> None:
    overrides = ["optimizer={name: sgd, lr: 1e+30}", "model.norm=none", "train.save_every_steps=1"]
    with pytest.raises(FloatingPointError) as caught:
        train(make_config(data_root, *overrides))
    found = re.fullmatch(
        r"train: (the loss|a gradient) is (nan|-?inf) in step (\d), at a learning rate of \S+, on "
        r"the samples (\d(?:, \d)*); the weights were not changed by it, and runs/tiny/last\.pt is "
        r"whole\. Lower optimizer\.lr.*",
        str(caught.value),
    )
    assert found is not None, caught.value
    step = int(found[3])
    state = load_checkpoint(Path("runs/tiny/last.pt"))
    assert state["progress"]["step"] == step - 1
    assert all(weights.isfinite().all() for weights in state["model"].values())
    # The samples are those of the step.
    stems = state["train_stems"]
    places = SeededBatchSampler(len(stems), 2, 0, 0, 9).batch(step - 1)
    assert found[4] == ", ".join(dict.fromkeys(stems[index] for _, index in places))


def test_steps_that_float16_skips_are_counted(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    run = train(make_config(data_root, "train.precision=float16", "train.epochs=20"))
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    skipped = [row["skipped_steps"] for row in history]
    assert skipped[0] == 2
    assert 2 < skipped[-1] < 35
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    shown = capsys.readouterr().out
    assert f"float16 skipped {skipped[-1]} of 40 steps" in shown
    assert "  2 steps skipped" in shown


def test_float16_does_not_skip_for_ever(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Config, device: torch.device) -> UNet:
        net = build_network(config, device)
        net.head.weight.register_hook(lambda gradient: gradient * math.inf)
        return net

    monkeypatch.setattr("unet.training.train.build_network", broken)
    monkeypatch.setattr("unet.training.step._SMALLEST_SCALE", 2.0**10)
    with pytest.raises(FloatingPointError, match=r"a gradient is (nan|inf) in step 8"):
        train(make_config(data_root, "train.precision=float16", "train.epochs=20"))


def test_too_little_memory_comes_with_advice(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("unet.training.step.TrainingStep.gradients", fail)
    with pytest.raises(MemoryError) as caught:
        train(make_config(data_root, "train.batch_size=4", "augment.crop=[512, 384]"))
    assert str(caught.value) == (
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); a step has batches of 4 "
        "crops of 512 x 384: set train.batch_size=2 with train.accumulate=2 (the same samples in a "
        "step, half of the memory), or train.activation_checkpointing=true (slower), or augment.crop=[256,192], "
        "or smaller model.widths"
    )
    with pytest.raises(MemoryError, match=r"1 crops of 24 x 32: set augment.crop=\[16,16\], or sm"):
        train(
            make_config(
                data_root, "train.batch_size=1", "train.activation_checkpointing=true", "name=b"
            )
        )


def test_a_run_ends_early_when_the_score_no_longer_grows(
    data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.2])
    real = unet.training.trainer.scores
    monkeypatch.setattr(
        "unet.training.trainer.scores", lambda matrix: replace(real(matrix), mean_iou=next(scores))
    )
    config = make_config(data_root, "train.epochs=9", "train.patience=2")
    run = train(config)
    history = load_checkpoint(run / "last.pt")["progress"]["history"]
    assert [row["mean_iou"] for row in history] == [0.1, 0.3, 0.2, 0.3]
    assert "ended early, after epoch 4, as train.patience asks" in capsys.readouterr().out
    train(config, resume=True)
    assert "the run is complete: there is nothing left to train" in capsys.readouterr().out


def test_an_epoch_may_have_a_number_of_steps(data_root: Path) -> None:
    config = make_config(data_root, "train.steps_per_epoch=5", "train.epochs=2")
    history = load_checkpoint(train(config) / "last.pt")["progress"]["history"]
    assert [(row["epoch"], row["step"]) for row in history] == [(1, 5), (2, 10)]


def test_gradients_of_several_batches_are_those_of_one(data_root: Path) -> None:
    same = ["model.norm=none", "loss.dice=0", "train.epochs=4", "optimizer={name: sgd, lr: 0.01}"]
    one = train(make_config(data_root, "name=one", "train.batch_size=4", *same))
    two = train(make_config(data_root, "name=two", "train.accumulate=2", *same))
    a, b = (load_checkpoint(run / "last.pt")["model"] for run in (one, two))
    for key in a:
        torch.testing.assert_close(a[key], b[key])


def test_averaged_weights_are_scored_and_saved_beside_the_raw_ones(data_root: Path) -> None:
    run = train(make_config(data_root, "train.ema_decay=0.6"))
    raw = train(make_config(data_root, "name=raw"))
    state, other = (load_checkpoint(one / "last.pt") for one in (run, raw))
    assert states_equal(state["raw_model"], other["model"])
    assert not states_equal(state["model"], other["model"])
    assert "raw_model" in load_checkpoint(run / "best.pt")
    rows, raw_rows = (one["progress"]["history"] for one in (state, other))
    assert [row["raw_mean_iou"] for row in rows] == [row["mean_iou"] for row in raw_rows]
    assert [row["mean_iou"] for row in rows] != [row["mean_iou"] for row in raw_rows]
    head = load_model(run / "last.pt").net.head.weight
    assert torch.equal(head, state["model"]["head.weight"])
    assert not torch.equal(head, state["raw_model"]["head.weight"])


def test_a_size_that_cannot_get_smaller_is_no_advice() -> None:
    config = make_config(Path(), "augment.crop=[16, 16]", "train.batch_size=1")
    assert unet.training.trainer._memory_advice(config).endswith(
        "1 crops of 16 x 16: set train.activation_checkpointing=true (slower), or smaller model.widths"
    )


def test_the_advice_for_an_unpadded_network_is_a_size_that_it_takes() -> None:
    deep = ("model={padding: valid, widths: [4, 4, 4, 4, 4]}", "train.batch_size=1")
    advice = unet.training.trainer._memory_advice(
        make_config(Path(), *deep, "augment.crop=[572, 204]")
    )
    assert "augment.crop=[380,204]" in advice
    advice = unet.training.trainer._memory_advice(
        make_config(Path(), *deep, "augment.crop=[188, 204]")
    )
    assert "augment.crop" not in advice
