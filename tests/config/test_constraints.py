import dataclasses
from typing import get_type_hints

import pytest
from helpers import small_config

from unet.config.constraints import monitor_names
from unet.config.schema import BorderConfig, tile_overlap
from unet.metrics.confusion import Scores
from unet.runtime.text import shorten


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widths=[]", "model.widths: got the list [], expected a list of 1 to 10 items"),
        ("augment.scale=[2, 1]", "augment.scale: got [2.0, 1.0], expected the smaller"),
        ("data.validation.stems=['7']", "expected one of fraction, stems, split"),
        ("data.validation={}", "expected one of fraction, stems, split"),
        (
            "data.axes=CYC",
            "data.axes: got 'CYC', expected different capital letters",
        ),
        ("data.validation={images: x}", "expected one of fraction, stems, split"),
        ("loss={cross_entropy: 0, dice: 0}", "loss: got 0 for cross_entropy and dice"),
        ("loss.class_weights=[1]", "loss.class_weights: got [1.0], expected 2 numbers"),
        ("loss.border={}", "loss.border: got no cells, expected label images in data.instances"),
        ("loss.border={classes: [dog]}", "loss.border.classes: got dog, expected names in data."),
        ("loss.border={classes: [cell, ground]}", "got cell, ground, expected fewer classes than"),
        ("loss={cross_entropy: 0, border: {classes: [cell]}}", "got loss.cross_entropy 0, expect"),
        ("data.instances=a.png", "data: got 'a.png', expected a folder or a pattern with"),
        (
            "data.validation.instances=cells",
            "data.validation.instances: got no data.validation.images",
        ),
        ("model.widths=[8192, 8192, 8192, 8192, 8192]", "network would have about 12 billion"),
        (
            "train={epochs: 1, seed: 4294967295, seeds: 2}",
            "train.seeds: got 2, expected fewer: the last seed would be above 2**32 - 1",
        ),
        ("schedule.power=0.9", "schedule.power: got 0.9, expected null with schedule.name cosine"),
        (
            "schedule={name: plateau, factor: 0.5}",
            "schedule.patience: got null, expected a number (such",
        ),
        ("schedule.factor=0.5", "schedule.factor: got 0.5, expected null with"),
        ("schedule={name: one_cycle, warmup_epochs: 1}", "warmup_epochs: got 1, expected 0 with"),
        (
            "train={epochs: 9, activation_checkpointing: true, compile: true}",
            "train: got activation_checkpointing and compile",
        ),
        ("train.device=gpu", "train.device: got 'gpu', expected auto, cpu, cuda, cuda:N or mps"),
        ("tiling={size: [64, 32], overlap: 17}", "tiling.size: got [64, 32], expected at least 33"),
        (
            "tiling.size=[1024, 207]",
            "got [1024, 207], expected at least 208 x 208 for an overlap of",
        ),
        ("data.classes={a: 0, b: 0}", "data.classes: got the value 0 twice"),
        ("data.classes={a: 0}", "data.classes: got 1 class(es), expected 2 to 253"),
        (
            "data.classes={a: 0, b: [1, 2, 3]}",
            "got both 0 and [1, 2, 3], expected grey values",
        ),
        ("data.classes={a: 0, b: x}", "data.classes: got 'x', expected values such as '127, 128'"),
        (
            "data.images='{stm}.png'",
            "data: got {stm} in '{stm}.png', expected only {stem} and {case}",
        ),
        (
            "data.validation={images: [a, b], masks: [x, y, z]}",
            "data.validation: got 2, 3 places, expected as many of masks and label images",
        ),
        (
            "data={root: x, csv: a, images: b, classes: {a: 0, b: 1}, validation: {fraction: 0.5}}",
            "data.csv: got images or masks too, expected only those in the table",
        ),
        ("data.masks={dog: dogs}", "data.masks: got dog, expected a pattern for each class except"),
        ("data.channels=[a]", "data.channels: got 1 patterns, expected model.in_channels, 3"),
        ("data.normalization={mean: [1], std: [1]}", "normalization.mean: got 1 numbers, expected"),
        ("data.validation={folds: 3, fold: 3}", "data.validation.fold: got 3, expected 0 to 2"),
        (
            "data={root: x, csv: a, skip_unlabelled: true, classes: {a: 0, b: 1}, "
            "validation: {folds: 2}}",
            "data.csv: got data.skip_unlabelled too",
        ),
        ("data.validation={split: val}", "data.validation.split: got no data.csv"),
        ("data.validation={fraction: 0.1, group: '('}", "expected a regular expression"),
        (
            "data.validation={stems: ['7'], group: a}",
            "group: got 'a', expected null without fraction or folds",
        ),
        (
            "data.validation={images: a, masks: {cell: b}}",
            "with data.masks 'masks', expected one pattern, or one",
        ),
        (
            "sampling={rare_classes: [dog], rare_fraction: 0.5}",
            "sampling.rare_classes: got dog, expected names in",
        ),
        (
            "sampling={rare_classes: [cell]}",
            "got rare_classes ['cell'], rare_fraction 0.0, expected both rare_classes and a",
        ),
        ("optimizer.encoder_lr=1e-4", "optimizer.encoder_lr: got 0.0001, expected a model.encoder"),
        ("train.encoder_weights=DEFAULT", "train.encoder_weights: got DEFAULT, expected a model"),
        ("train.freeze_encoder_epochs=2", "train.freeze_encoder_epochs: got 2, expected a model.e"),
        (
            "model={encoder: convnext_tiny}",
            "model.widths: got [64, 128, 256, 512, 1024], expected 4 numbers with model.encoder "
            "convnext_tiny, one for each level of the decoder, such as [32, 64, 128, 256]",
        ),
        (
            "model={encoder: resnet34, downsampling: conv}",
            "model.downsampling: got conv, expected the default, max_pool: model.encoder resnet34 ",
        ),
        (
            "model={upsampling: bilinear, padding: valid}",
            "model.upsampling: got bilinear, expected conv_transpose with model.padding valid",
        ),
        (
            "model={encoder: resnet34, padding: valid}",
            "model.padding: got valid, expected the default, same: model.encoder resnet34 is pa",
        ),
        (
            "model={encoder: resnet34, dropout: 0.5}",
            "model.dropout: got 0.5, expected the default, 0: model.encoder resnet34 takes none",
        ),
        ("sampling={crops_per_image: 2}", "sampling: got no augment.crop, expected one"),
        ("data.ignore=[255]", "data.classes: got the value 255 twice"),
        ("data.validation={stems: []}", "data.validation.stems: got an empty list"),
        (
            "train.monitor=mean_ioo",
            "train.monitor: got 'mean_ioo', expected a score of the validation; did you mean "
            "mean_iou?",
        ),
        ("train.monitor=iou_sell", "did you mean iou_cell?"),
        ("train.monitor=loss", "known: pixel_accuracy, mean_iou,"),
        (
            "train.score_raw_weights=true",
            "train.score_raw_weights: got true, expected false without train.ema_decay",
        ),
        ("name=a/b", "name: got 'a/b', expected letters"),
        ("name=..", "name: got '..', expected letters"),
    ],
)
def test_a_conflict_is_named_with_its_path(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=": got ") as caught:
        small_config(override)
    # An override is named in place of its setting.
    word, path = shorten(override, 60), override.partition("=")[0]
    assert message in str(caught.value).replace(f"{word}: ", f"{path}: ", 1)


def test_a_batch_that_no_machine_has_memory_for_is_an_error() -> None:
    crop = "augment.crop=[16384, 16384]"
    small_config(crop, "train.batch_size=21")
    message = r"batch_size=22: got 22, expected at most 21 with crops of 16384 x 16384 pixels and 3"
    with pytest.raises(ValueError, match=message):
        small_config(crop, "train.batch_size=22")
    message = r"^data.normalization=.*: data.normalization.mean: got 1 numbers, expected model.in"
    with pytest.raises(ValueError, match=message):
        small_config("data.normalization={mean: [1], std: [1]}", crop, "model.in_channels=9")


def test_a_crop_that_an_unpadded_network_cannot_halve_is_an_error() -> None:
    with pytest.raises(ValueError, match="such as") as caught:
        small_config("model.padding=valid", "augment.crop=[512, 572]")
    assert (
        "augment.crop=[512, 572]: got [512, 572], expected a size that 5 levels can halve with "
        "model.padding" in str(caught.value)
    )
    assert str(caught.value).endswith("such as [508, 572] or [524, 572]")
    with pytest.raises(ValueError, match=r"such as \[188, 556\] or \[188, 572\]"):
        small_config("model.padding=valid", "augment.crop=[100, 560]")
    for crop in ("[572, 572]", "[188, 204]", "null"):
        small_config("model.padding=valid", f"augment.crop={crop}")


def test_tiles_of_an_unpadded_network_have_room_for_its_context() -> None:
    valid = "model.padding=valid"
    assert tile_overlap(small_config(valid)) == 4
    assert tile_overlap(small_config(valid, "model.norm=group")) == 192
    for overlap, smallest in (("null", 204), ("0", 204), ("20", 220)):
        tiling = f"tiling={{size: [{smallest}, {smallest}], overlap: {overlap}}}"
        small_config(valid, tiling)
        with pytest.raises(ValueError, match=f"expected at least {smallest} x {smallest} for an"):
            small_config(valid, tiling.replace(f" [{smallest}", f" [{smallest - 1}"))


def test_initial_weights_of_an_encoder_come_from_one_setting() -> None:
    both = ["model.encoder=resnet34", "train.encoder_weights=DEFAULT", "train.init_from=a.pt"]
    with pytest.raises(ValueError, match="train: got encoder_weights and init_from, expected one"):
        small_config(*both)
    freeze = "train.freeze_encoder_epochs=1"
    small_config(*both[:2], freeze)
    small_config(both[0], both[2], freeze)
    with pytest.raises(ValueError, match=r"got 1, expected 0 without train\.encoder_weights or"):
        small_config(both[0], freeze)


def test_cells_come_from_classes_or_from_label_images() -> None:
    classes = small_config("loss.border={classes: [cell]}").loss.border
    assert classes == BorderConfig(weight=10, sigma=5, classes=("cell",))
    assert small_config("data.instances=cells", "loss.border={}").loss.border is not None
    assert small_config("data.instances=cells").loss.border is None  # label images are also scored
    both = small_config("data.instances=cells", "loss.border={classes: [cell]}")
    assert both.loss.border == classes
    with pytest.raises(
        ValueError,
        match=r"data\.csv=pairs\.csv: got data\.instances too, expected only one of them: a table",
    ):
        small_config("data.instances=cells", "loss.border={}", "data.csv=pairs.csv")


def test_every_score_of_a_validation_can_be_monitored() -> None:
    hints = get_type_hints(Scores)
    scalars = [field.name for field in dataclasses.fields(Scores) if hints[field.name] is float]
    names = monitor_names(["ground", "cell"])
    assert sorted(names) == sorted([*scalars, "iou_ground", "iou_cell", "dice_ground", "dice_cell"])
    for name in ("mean_dice", "pixel_accuracy", "dice_cell"):
        assert small_config(f"train.monitor={name}").train.monitor == name
