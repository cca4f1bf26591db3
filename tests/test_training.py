import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, make_config, write_pairs
from PIL import Image

import unet.training
from unet import load_model, predict
from unet.checkpoint import load_checkpoint
from unet.config import (
    OptimizerConfig,
    ScheduleConfig,
    config_from_dict,
    config_to_dict,
    load_config,
)
from unet.training import train

pytestmark = pytest.mark.usefixtures("workdir")


def states_equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def test_a_run_leaves_what_it_promises(data_root: Path) -> None:
    config = make_config(data_root)
    assert train(config) == Path("runs/tiny")
    files = sorted(str(path.relative_to("runs/tiny")) for path in Path("runs/tiny").rglob("*.*"))
    assert files == [
        "best.pt",
        "config.yaml",
        "last.pt",
        "metrics.csv",
        "previews/epoch_0001.png",
        "previews/epoch_0002.png",
        "previews/epoch_0003.png",
    ]
    assert load_config(Path("runs/tiny/config.yaml")) == config
    with Path("runs/tiny/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["lr"]) == 0
    assert 0 <= float(rows[-1]["iou_box"]) <= 1
    with Image.open("runs/tiny/previews/epoch_0003.png") as picture:
        assert picture.size[0] > 3 * 256


def test_it_learns(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(make_config(data_root, "train.epochs=25", "train.validate_every=25"))
    row = load_checkpoint(run / "best.pt")["history"][-1]
    assert row["mean_iou"] > 0.9
    assert f"next:     unet evaluate {run / 'best.pt'}" in capsys.readouterr().out
    # And the checkpoint alone segments an image that it has never seen, to the mask's values.
    write_pairs(Path("new"), 1, seed=99)
    model = load_model(run / "best.pt")
    ids = predict(model, Path("new/images/0.png"))
    with Image.open("new/masks/0.png") as mask:
        truth = np.asarray(mask) == 200
    assert ((ids == 1) == truth).mean() > 0.95


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_equals_uninterrupted(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    overrides = ["train.epochs=4", "schedule.warmup_epochs=1", f"train.num_workers={num_workers}"]
    train(make_config(data_root, "name=whole", *overrides))

    write, calls = unet.training._write_metrics, []

    def interrupted(path: Path, history: list) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, history)

    monkeypatch.setattr(unet.training, "_write_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(data_root, "name=parts", *overrides))
    train(make_config(data_root, "name=parts", *overrides), resume=True)

    whole, parts = (load_checkpoint(Path("runs") / n / "last.pt") for n in ("whole", "parts"))
    for part in ("model", "optimizer", "schedule", "scaler", "history"):
        assert states_equal(whole[part], parts[part]), part
    assert sorted(path.name for path in Path("runs/parts").iterdir()) == sorted(
        path.name for path in Path("runs/whole").iterdir()
    )


def test_a_run_that_exists_is_not_overwritten_unasked(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    before = (train(config) / "last.pt").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"runs.tiny: exists; pass --resume"):
        train(config)
    assert Path("runs/tiny/last.pt").stat().st_mtime_ns == before
    train(config, overwrite=True)
    assert Path("runs/tiny/last.pt").stat().st_mtime_ns != before


def test_only_a_runs_folder_is_deleted(data_root: Path) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/thesis.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds no config\.yaml and is no run's folder"):
        train(make_config(data_root), overwrite=True)
    assert Path("runs/tiny/thesis.txt").exists()


def test_resuming_with_another_config_shows_the_difference(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1"))
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.01 and is now 0\.02"):
        train(make_config(data_root, "train.epochs=1", "optimizer.lr=0.02"), resume=True)
    # These do not change the weights.
    train(make_config(data_root, "train.epochs=1", "train.num_workers=1"), resume=True)


def test_resuming_nothing_is_refused(data_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"last\.pt: there is nothing to resume"):
        train(make_config(data_root), resume=True)
    assert not Path("runs/tiny").exists()


def test_faults_on_both_sides_of_the_split_are_reported_together(data_root: Path) -> None:
    for stem in "0123":
        (data_root / "masks" / f"{stem}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        train(make_config(data_root, "data.validation={stems: ['3', '4']}"))
    assert len(str(caught.value).splitlines()) == 4


def test_a_run_without_a_checkpoint_is_not_said_to_resume(data_root: Path) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/config.yaml").touch()
    with pytest.raises(FileExistsError, match=r"exists; pass --overwrite to delete it"):
        train(make_config(data_root))


def test_resuming_a_complete_run_says_so(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    train(config, resume=True)
    assert "the run is complete: there is nothing left to train" in capsys.readouterr().out


def test_wrong_data_leaves_no_run(data_root: Path) -> None:
    (data_root / "masks" / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3\.png: cannot be read"):
        train(make_config(data_root))
    with pytest.raises(FileNotFoundError, match=r"data\.root: there is no folder"):
        train(make_config(data_root / "elsewhere"))
    assert not Path("runs/tiny").exists()


def test_images_of_many_sizes_need_a_crop(data_root: Path) -> None:
    for folder in ("images", "masks"):
        Image.new("L", (40, 50)).save(data_root / folder / "6.png")
        Image.new("L", (50, 40)).save(data_root / folder / "7.png")
    with pytest.raises(ValueError, match=r"augment\.crop: got none, but training images of"):
        train(make_config(data_root, "augment.crop="))
    train(make_config(data_root, "augment.crop=", "train.batch_size=1", "train.epochs=1"))


def test_a_loss_that_is_not_finite_stops_the_run(data_root: Path) -> None:
    overrides = ["optimizer={name: sgd, lr: 1e+30}", "model.norm=none"]
    with pytest.raises(FloatingPointError, match=r"the loss is \w+ in epoch .*lower optimizer\.lr"):
        train(make_config(data_root, *overrides))


def test_resuming_needs_the_same_images(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    image = data_root / "images" / "0.png"
    before = image.read_bytes()
    for path in (data_root / "images").iterdir():
        Image.new("L", (WIDTH, HEIGHT), int(path.stem)).save(path)
    with pytest.raises(ValueError, match="images or masks have changed since the run began"):
        train(config, resume=True)
    image.write_bytes(before)
    write_pairs(data_root / "more", 1, seed=8)
    for folder in ("images", "masks"):
        (data_root / "more" / folder / "0.png").rename(data_root / folder / "9.png")
    with pytest.raises(ValueError, match=r"had other images \(4 train_stems, now 5\)"):
        train(config, resume=True)


def test_resuming_keeps_the_normalization_to_the_last_digit(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=2")
    last = train(config) / "last.pt"
    state = load_checkpoint(last)
    del state["history"][1]
    changed = tuple(m * (1 + 1e-9) for m in state["normalization"]["mean"])
    state["normalization"]["mean"] = changed
    torch.save(state, last)
    train(config, resume=True)
    assert len(load_checkpoint(last)["history"]) == 2
    assert load_checkpoint(last)["normalization"]["mean"] == changed


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_resuming_notices_files_that_have_changed(data_root: Path, folder: str) -> None:
    config = make_config(data_root, "train.epochs=1", "data.normalization=image")
    train(config)
    with Image.open(data_root / folder / "3.png") as image:
        pixels = np.array(image)
    pixels[0, 0] = 200
    Image.fromarray(pixels).save(data_root / folder / "3.png")
    with pytest.raises(ValueError, match="images or masks have changed since the run began"):
        train(config, resume=True)


def test_a_warm_up_of_almost_the_whole_run_trains(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1", "schedule.warmup_epochs=0.9"))


def test_validating_on_the_training_images_is_refused(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"of which data\.images names files too"):
        train(make_config(data_root, "data.validation={images: images, masks: masks}"))


def test_resuming_in_another_precision_is_refused(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1"))
    with pytest.raises(ValueError, match=r"computed in float32, here it would be torch\.bfloat16"):
        train(make_config(data_root, "train.epochs=1", "train.precision=bfloat16"), resume=True)


def test_resuming_with_the_classes_turned_around_is_refused(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    settings = config_to_dict(config)
    settings["data"]["classes"] = {"box": 200, "ground": 0}
    with pytest.raises(ValueError, match=r"the order of data\.classes was ground, box"):
        train(config_from_dict(settings), resume=True)


def test_the_optimizer_has_the_settings_of_the_config() -> None:
    net = torch.nn.Conv2d(1, 1, 1)
    adamw = unet.training._optimizer(OptimizerConfig(lr=0.3, weight_decay=0.2, momentum=0.8), net)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["lr"] == 0.3
    assert adamw.defaults["weight_decay"] == 0.2
    assert adamw.defaults["betas"] == (0.8, 0.999)
    sgd = unet.training._optimizer(OptimizerConfig(name="sgd", lr=0.3, momentum=0.8), net)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["weight_decay"] == 0.01


def test_validation_in_folders_of_their_own(data_root: Path) -> None:
    write_pairs(data_root / "held_out", 2, seed=5)
    validation = "data.validation={images: held_out/images, masks: held_out/masks}"
    run = train(make_config(data_root, validation, "train.epochs=1"))
    assert load_checkpoint(run / "last.pt")["history"][-1]["epoch"] == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_optimizers_and_precisions_train(data_root: Path, optimizer: str, precision: str) -> None:
    overrides = [
        "train.epochs=2",
        f"optimizer={{name: {optimizer}, lr: 0.01}}",
        f"train.precision={precision}",
        "schedule={name: polynomial, power: 0.9}",
    ]
    history = load_checkpoint(train(make_config(data_root, *overrides)) / "last.pt")["history"]
    losses = [row["train_loss"] for row in history]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(warmup_epochs=1), [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, None, 0.5, None, 0]),
        (ScheduleConfig(name="polynomial", power=2.0), [1, None, None, None, 0.25, None, None, None,
                                                        0]),
    ],
)  # fmt: skip
def test_schedules_warm_up_and_fall_to_0(
    config: ScheduleConfig, expected: list[float | None]
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = unet.training._schedule(config, optimizer, epoch_steps=4, epochs=2)
    for factor in expected:
        if factor is not None:
            assert schedule.get_last_lr()[0] == pytest.approx(2 * factor)
        optimizer.step()
        schedule.step()
