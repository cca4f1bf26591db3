import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from unet.augment import Augment
from unet.border_weights import Border
from unet.config import (
    AugmentConfig,
    BorderConfig,
    Config,
    LossConfig,
    ModelConfig,
    config_from_dict,
    config_to_dict,
    differences,
    dotted,
    load_config,
    tile_overlap,
    tiles_blend,
)
from unet.losses import SegmentationLoss
from unet.model import UNet

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = """
data:
  root: somewhere
  classes: {ground: 0, cell: 255}
  validation: {fraction: 0.2}
train: {epochs: 5}
"""


def load(tmp_path: Path, text: str = SMALL, *overrides: str) -> Config:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def test_settings_are_read_without_torch() -> None:
    code = "import sys, unet.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_the_file_names_the_run(tmp_path: Path) -> None:
    assert load(tmp_path).name == "mine"
    assert load(tmp_path, SMALL + "name: other").name == "other"


def test_a_config_survives_being_written_and_read(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "data.ignore=[7, 8]", "data.classes.cell=9")
    assert config_from_dict(config_to_dict(config)) == config


def test_overrides_are_yaml_and_checked(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "optimizer.lr=1e-4", "model.widths=[8, 16]", "train.epochs=9")
    assert config.optimizer.lr == 1e-4
    assert config.model.widths == (8, 16)
    assert config.train.epochs == 9


def test_tiles_share_as_much_as_the_network_sees_unless_told(tmp_path: Path) -> None:
    assert tile_overlap(load(tmp_path)) == 192
    assert tile_overlap(load(tmp_path, SMALL, "model.widths=[8, 16, 32, 64]")) == 96
    assert tile_overlap(load(tmp_path, SMALL, "tiling.overlap=10")) == 10
    assert load(tmp_path, SMALL, "tiling.size=[208, 300]").tiling.size == (208, 300)


def test_every_setting_has_its_dotted_path(tmp_path: Path) -> None:
    flat = dotted(load(tmp_path))
    assert flat["train.epochs"] == 5
    assert flat["data.classes.cell"] == 255
    assert flat["model.widths"] == [64, 128, 256, 512, 1024]


@pytest.mark.parametrize(
    ("section", "part", "besides"),
    [
        (AugmentConfig, Augment, {"unpadded_levels"}),
        (ModelConfig, UNet, {"num_classes", "recompute"}),  # data.classes has so many; train's
        # One is of the project, not of a run; the other is computed with the data.
        (LossConfig, SegmentationLoss, {"ignore_index", "border"}),
        (BorderConfig, Border, set()),
    ],
)
def test_settings_are_the_arguments_of_what_they_feed(
    section: type, part: type, besides: set[str]
) -> None:
    parameters = inspect.signature(part).parameters
    fields = {field.name: field for field in dataclasses.fields(section)}
    assert fields.keys() ^ parameters.keys() == besides
    for name in fields.keys() - besides:
        assert fields[name].default == parameters[name].default


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=[8]", "model.widht: unknown key; did you mean model.widths?"),
        ("modle.widths=[8]", "modle: unknown key; did you mean model?"),
        ("train.zzz=1", "train.zzz: unknown key; known: epochs, steps_per_epoch,"),
        ("train.epochs=ten", "train.epochs: got the text 'ten', expected a whole number at least"),
        ("train.epochs=2.5", "train.epochs: got 2.5, expected a whole number"),
        ("train.epochs=true", "train.epochs: got true, expected a whole number"),
        ("train.epochs=0", "train.epochs: got 0, expected a whole number at least 1"),
        ("train.epochs=", "train.epochs: got nothing, expected a whole number"),
        ("train=5", "train: got 5, expected a section of epochs, steps_per_epoch,"),
        ("optimizer.lr=-1", "optimizer.lr: got -1, expected a number above 0"),
        ("optimizer.lr=.nan", "optimizer.lr: got nan, expected a number"),
        ("optimizer.name=adam", "optimizer.name: got the text 'adam', expected one of adamw, sgd"),
        ("model.widths=8", "model.widths: got 8, expected a list, each item a whole number"),
        ("model.widths=[8, 0]", "model.widths[1]: got 0, expected a whole number at least 1"),
        ("model.widths=[]", "model.widths: got an empty list"),
        ("augment.crop=[64]", "augment.crop: got the list [64], expected a list of 2"),
        ("augment.scale=[2, 1]", "augment.scale: got [2.0, 1.0], expected the smaller"),
        ("augment.flip_vertical=1", "augment.flip_vertical: got 1, expected true or false"),
        ("data.classes.cell=-3", "data.classes.cell: got -3, expected a whole number at least 0"),
        ("data.classes={1: 0, 2: 1}", "data.classes: got the name 1, expected text; put it in"),
        ("data.validation.stems=[7]", "data.validation.stems: got the list [7], expected a list"),
        ("data.validation.stems=['7']", "expected one of fraction, stems, split"),
        ("data.validation={}", "expected one of fraction, stems, split"),
        ("data.validation={images: x}", "expected one of fraction, stems, split"),
        ("loss={cross_entropy: 0, dice: 0}", "loss: got 0 for cross_entropy and dice"),
        ("loss.class_weights=[1]", "loss.class_weights: got [1.0], expected 2 numbers"),
        ("loss.border={}", "loss.border: expected the cells either by data.instances, label im"),
        ("loss.border={classes: [dog]}", "loss.border.classes: got dog, expected names of data."),
        ("loss.border={classes: [cell, ground]}", "got cell, ground, expected fewer than data.cl"),
        ("loss.border={sigma: 0}", "loss.border.sigma: got 0, expected a number above 0"),
        ("loss={cross_entropy: 0, border: {classes: [cell]}}", "got loss.cross_entropy 0, expect"),
        ("data.instances=cells", "data.instances: got cells, but no loss.border, which alone"),
        ("data.instances=a.png", "data: got 'a.png', expected a folder or {stem} in it"),
        ("schedule.warmup_epochs=5", "schedule.warmup_epochs: got 5, expected less than"),
        ("schedule.power=0.9", "schedule.power: expected a number (such as 0.9) with"),
        ("schedule={name: plateau, factor: 0.5}", "schedule.patience: expected a number (such as"),
        ("schedule.factor=0.5", "schedule.factor: expected a number (such as 0.5) with"),
        ("schedule={name: one_cycle, warmup_epochs: 1}", "warmup_epochs: got 1, expected 0 with"),
        ("train={epochs: 9, recompute: true, compile: true}", "train: got recompute and compile"),
        ("train.device=gpu", "train.device: got 'gpu', expected auto, cpu, cuda or cuda:N"),
        ("tiling={size: [64, 32], overlap: 17}", "tiling.size: got [64, 32], expected at least 33"),
        (
            "tiling.size=[1024, 207]",
            "got [1024, 207], expected at least 208 x 208 for an overlap of",
        ),
        (
            "model={padding: none}",
            "model.padding: got the text 'none', expected one of same, valid",
        ),
        ("model.dropout=1", "model.dropout: got 1, expected a number at least 0 and at most"),
        ("tiling.batch_size=0", "tiling.batch_size: got 0, expected a whole number at least 1"),
        ("data.classes={a: 0, b: 0}", "data.classes: got the value 0 twice"),
        ("data.classes={a: 0}", "data.classes: got 1 class(es), expected 2 to 253"),
        (
            "data.classes={a: 0, b: [1, 2, 3]}",
            "got both 0 and [1, 2, 3], expected grey values",
        ),
        ("data.classes={a: 0, b: x}", "data.classes: got 'x', expected values such as '127, 128'"),
        ("data.images='{stm}.png'", "data: got {stm} in '{stm}.png', expected {stem} only"),
        (
            "data={root: x, csv: a, images: b, classes: {a: 0, b: 1}, validation: {fraction: 0.5}}",
            "data.csv: got images or masks besides, expected the table's alone",
        ),
        ("data.masks={dog: dogs}", "data.masks: got dog, expected a pattern for each of data.cla"),
        ("data.channels=[a]", "data.channels: got 1 patterns, expected model.in_channels, 3"),
        ("data.normalization=all", "data.normalization: got the text 'all', expected one of"),
        ("data.normalization={mean: [1], std: [1]}", "normalization.mean: got 1 numbers, expected"),
        ("data.normalization={mean: [1]}", "data.normalization.std: missing, expected a list"),
        ("data.validation={folds: 3, fold: 3}", "data.validation.fold: got 3, expected 0 to 2"),
        ("data.validation={split: val}", "data.validation.split: expected data.csv"),
        ("data.validation={fraction: 0.1, group: '('}", "expected a regular expression"),
        ("data.validation={stems: ['7'], group: a}", "group: expected fraction or folds"),
        ("data.validation={images: a, masks: {cell: b}}", "masks: expected one place, or one for"),
        ("sampling={rare: [dog], rare_share: 0.5}", "sampling.rare: got dog, expected names of"),
        ("sampling={rare: [cell]}", "sampling: expected both rare and a rare_share above 0"),
        ("optimizer.encoder_lr=1e-4", "optimizer.encoder_lr: got 0.0001, expected a network of t"),
        ("train.encoder_weights=DEFAULT", "train.encoder_weights: got DEFAULT, expected a network"),
        ("train.freeze_encoder_epochs=2", "train.freeze_encoder_epochs: got 2, expected a network"),
        (
            "model={encoder: convnext_tiny}",
            "model.widths: got [64, 128, 256, 512, 1024], expected 4 numbers, as many levels as "
            "the decoder has with model.encoder convnext_tiny, such as [32, 64, 128, 256]",
        ),
        (
            "model={encoder: resnet34, downsampling: conv}",
            "model.downsampling: got conv, expected it left out: model.encoder resnet34 has its",
        ),
        (
            "model={encoder: resnet34, padding: valid}",
            "model.padding: got valid, expected it left out: model.encoder resnet34 is padded",
        ),
        (
            "model={encoder: resnet34, dropout: 0.5}",
            "model.dropout: got 0.5, expected it left out: model.encoder resnet34 takes none",
        ),
        ("model.encoder=resnet", "model.encoder: got the text 'resnet', expected one of none, res"),
        ("sampling={crops_per_image: 2}", "sampling: expected an augment.crop"),
        ("data.ignore=[255]", "data.classes: got the value 255 twice"),
        ("optimizer.lr=1e999", "optimizer.lr: got the text '1e999', expected a number"),
        (f"optimizer.lr={10**400}", f"optimizer.lr: got {10**400}, expected a number"),
        ("data.validation={stems: []}", "data.validation.stems: got an empty list"),
        ("name=a/b", "name: got 'a/b', expected letters"),
        ("name=..", "name: got '..', expected letters"),
        ("epochs", "'epochs': expected an override such as train.epochs=5"),
        ("train.epochs=[", "'train.epochs=[': is not YAML"),
        ("train.epochs=2024-13-45", "is not YAML: month must be in 1..12"),
        ("train.epochs=" + "[" * 5000, "is not YAML"),
    ],
)
def test_a_fault_is_named_with_its_path(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        load(tmp_path, SMALL, override)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: ")
    assert message in str(caught.value)


def test_a_crop_that_an_unpadded_network_cannot_halve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        load(tmp_path, SMALL, "model.padding=valid", "augment.crop=[512, 572]")
    assert (
        "augment.crop: got [512, 572], expected what 5 levels of model.widths can halve with model"
        in str(caught.value)
    )
    assert str(caught.value).endswith("such as [508, 572] or [524, 572]")
    with pytest.raises(ValueError, match=r"such as \[188, 556\] or \[188, 572\]"):
        load(tmp_path, SMALL, "model.padding=valid", "augment.crop=[100, 560]")
    for crop in ("[572, 572]", "[188, 204]", "null"):
        load(tmp_path, SMALL, "model.padding=valid", f"augment.crop={crop}")


def test_tiles_of_an_unpadded_network_have_room_for_its_context(tmp_path: Path) -> None:
    valid = "model.padding=valid"
    assert tile_overlap(load(tmp_path, SMALL, valid)) == 4
    assert tile_overlap(load(tmp_path, SMALL, valid, "model.norm=group")) == 192
    for overlap, smallest in (("null", 204), ("0", 204), ("20", 220)):
        tiling = f"tiling={{size: [{smallest}, {smallest}], overlap: {overlap}}}"
        load(tmp_path, SMALL, valid, tiling)
        with pytest.raises(ValueError, match=f"expected at least {smallest} x {smallest} for an"):
            load(tmp_path, SMALL, valid, tiling.replace(f" [{smallest}", f" [{smallest - 1}"))


def test_all_faults_of_a_file_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.rot") as caught:
        load(tmp_path, SMALL.replace("root", "rot").replace("epochs: 5", "epochs: five"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "data.rot: unknown key; did you mean data.root?" in lines[0]
    assert "data.root: missing, expected text" in lines[1]
    assert "train.epochs: got the text 'five'" in lines[2]


def test_yaml_merges_are_read(tmp_path: Path) -> None:
    text = SMALL.replace("{epochs: 5}", "{<<: {epochs: 3, batch_size: 2}, epochs: 5}")
    assert load(tmp_path, text).train.epochs == 5
    assert load(tmp_path, text).train.batch_size == 2


def test_differences_name_the_setting_and_see_the_order_of_the_classes(tmp_path: Path) -> None:
    config = load(tmp_path)
    other = load(tmp_path, SMALL, "optimizer.lr=0.5", "train.num_workers=7")
    assert differences(config, other, ("train.num_workers",)) == [
        "optimizer.lr was 0.001 and is now 0.5"
    ]
    turned = load(tmp_path, SMALL.replace("ground: 0, cell: 255", "cell: 255, ground: 0"))
    assert differences(config, turned, ()) == [
        "the order of data.classes was ground, cell and is now cell, ground"
    ]
    assert differences(config, config, ()) == []


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the key 'train' stands here twice.*line 7"):
        load(tmp_path, SMALL + "train: {epochs: 6}")


@pytest.mark.parametrize("text", ["a: [", "\tx", "just text", "", "- 1"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml: (is not YAML|got .*, expected sections)"):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.yaml: there is no such config file"):
        load_config(tmp_path / "no.yaml")


def test_an_encoder_has_weights_from_one_place(tmp_path: Path) -> None:
    both = ["model.encoder=resnet34", "train.encoder_weights=DEFAULT", "train.init_from=a.pt"]
    with pytest.raises(ValueError, match="train: got encoder_weights and init_from, expected one"):
        load(tmp_path, SMALL, *both)
    freeze = "train.freeze_encoder_epochs=1"
    load(tmp_path, SMALL, *both[:2], freeze)
    load(tmp_path, SMALL, both[0], both[2], freeze)
    with pytest.raises(ValueError, match=r"got 1, expected 0 without train\.encoder_weights or"):
        load(tmp_path, SMALL, both[0], freeze)


def test_tiles_of_an_encoder_blend_unless_they_overlap_enough(tmp_path: Path) -> None:
    def tiles(encoder: str, *overrides: str) -> tuple[int, bool]:
        config = load(tmp_path, SMALL, f"model.encoder={encoder}", *overrides)
        return tile_overlap(config), tiles_blend(config)

    assert tiles("none") == (192, False)
    assert tiles("resnet50") == (256, True)
    assert tiles("resnet50", "tiling.overlap=576") == (576, False)
    assert tiles("resnet50", "tiling.overlap=575") == (575, True)
    assert tiles("efficientnet_b0", "tiling.overlap=576") == (576, True)
    assert tiles("none", "tiling.overlap=9") == (9, False)
    assert tiles("none", "model.norm=group") == (192, True)
    assert tiles("resnet50", "model.norm=group", "tiling.overlap=576") == (576, True)
    assert tiles("none", "model.padding=valid") == (4, False)
    assert tiles("none", "model.padding=valid", "model.norm=group") == (192, True)


def test_cells_come_from_one_place(tmp_path: Path) -> None:
    classes = load(tmp_path, SMALL, "loss.border={classes: [cell]}").loss.border
    assert classes == BorderConfig(weight=10, sigma=5, classes=("cell",))
    assert load(tmp_path, SMALL, "data.instances=cells", "loss.border={}").loss.border is not None
    with pytest.raises(ValueError, match=r"either by data\.instances.*got both"):
        load(tmp_path, SMALL, "data.instances=cells", "loss.border={classes: [cell]}")
    with pytest.raises(ValueError, match=r"data\.csv: got data.instances besides, which a table"):
        load(tmp_path, SMALL, "data.instances=cells", "loss.border={}", "data.csv=pairs.csv")
