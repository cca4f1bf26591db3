from pathlib import Path

import pytest
import torch
from helpers import make_config

from unet.training.messages import smaller_step, validation_text
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def test_the_advice_has_no_crop_that_is_not_smaller() -> None:
    config = make_config(Path(), "augment.crop=[16, 16]", "train.batch_size=1")
    assert smaller_step(config).endswith(
        "1 crops of 16 x 16: set train.activation_checkpointing=true (slower), or smaller "
        "model.widths"
    )


def test_a_shortened_warm_up_is_said(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warmup = "schedule.warmup_epochs=1"
    train(make_config(data_root, "train.epochs=1", warmup))
    assert (
        "note: the warm-up is shortened to 0.1 epochs, a tenth of train.epochs, because "
        "schedule.warmup_epochs is 1\n"
    ) in capsys.readouterr().out


def test_the_advice_for_an_unpadded_network_is_a_valid_size() -> None:
    deep = ("model={padding: valid, widths: [4, 4, 4, 4, 4]}", "train.batch_size=1")
    advice = smaller_step(make_config(Path(), *deep, "augment.crop=[572, 204]"))
    assert "augment.crop=[380,204]" in advice
    advice = smaller_step(make_config(Path(), *deep, "augment.crop=[188, 204]"))
    assert "augment.crop" not in advice


def test_out_of_memory_comes_with_advice(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("unet.training.step.TrainingStep.gradients", fail)
    with pytest.raises(MemoryError) as caught:
        train(make_config(data_root, "train.batch_size=4", "augment.crop=[512, 384]"))
    assert str(caught.value) == (
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); a step has batches of 4 "
        "crops of 512 x 384: set train.batch_size=2 with train.accumulate=2 (the same samples in a "
        "step, half the memory), or train.activation_checkpointing=true (slower), or "
        "augment.crop=[256,192], or smaller model.widths"
    )
    with pytest.raises(MemoryError, match=r"1 crops of 24 x 32: set augment.crop=\[16,16\], or sm"):
        train(
            make_config(
                data_root, "train.batch_size=1", "train.activation_checkpointing=true", "name=b"
            )
        )


def test_a_validation_is_one_line_with_the_time_so_far_and_left() -> None:
    row = {"epoch": 3, "seconds": 72.4, "train_loss": 0.5, "mean_iou": 0.25, "skipped_steps": 0}
    line = validation_text(row, 10, "mean_iou", is_best=True, left=3700)
    assert line == "epoch  3/10  01:12, 1:01:40 left  loss 0.5000  mean IoU 0.2500  best"
    line = validation_text(row | {"val_loss": 0.625}, 10, "mean_iou", is_best=False, left=3700)
    assert line.endswith("left  loss 0.5000 (validation 0.6250)  mean IoU 0.2500")
