from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HEIGHT, WIDTH, make_config, small_config
from PIL import Image

from unet.build import (
    build_classes,
    build_encoder_normalization,
    build_loss,
    build_network,
    build_normalization,
    build_optimizer,
    build_reader,
    build_training_reader,
    build_transforms,
    find_root,
    list_pairs,
    list_validation_pairs,
    memory_format,
)
from unet.inspection.check import check_data
from unet.models.unet import UNet


def test_the_optimizer_has_the_settings_of_the_config() -> None:
    net = UNet(1, widths=(4,))
    adamw = build_optimizer(
        make_config(Path(), "optimizer={lr: 0.3, weight_decay: 0.2, momentum: 0.8}"), net
    )
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["lr"] == 0.3
    assert adamw.defaults["weight_decay"] == 0.2
    assert adamw.defaults["betas"] == (0.8, 0.999)
    sgd = build_optimizer(make_config(Path(), "optimizer={name: sgd, lr: 0.3, momentum: 0.8}"), net)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["weight_decay"] == 0.01
    assert sgd.defaults["nesterov"]


def test_balanced_class_weights_are_inverse_class_frequencies() -> None:
    """Summed over the pixels, each class then has the same weight."""
    pixels = np.array([100, 300, 0])
    loss = build_loss(make_config(Path(), "loss.class_weights=balanced"), pixels)
    weights = loss.class_weights.tolist()
    assert weights == pytest.approx([4 / 3, 4 / 9, 0])
    assert weights[0] * pixels[0] == pytest.approx(weights[1] * pixels[1])


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("masks", ["{cell: c, rod: r}", "{rod: r, cell: c}"])
def test_masks_per_class_are_sorted_by_class_id(tmp_path: Path, masks: str) -> None:
    touch(tmp_path, *(f"{folder}/7.png" for folder in ("images", "c", "r")))
    config = small_config(
        f"data.root={tmp_path}",
        "data.classes={ground: 0, cell: 1, rod: 2}",
        f"data.masks={masks}",
        f"data.validation={{images: images, masks: {masks}}}",
    )
    for pairs, errors in (list_pairs(config), list_validation_pairs(config)):
        assert not errors
        assert [Path(path).parent.name for path in pairs[0].masks] == ["c", "r"]


def test_a_missing_data_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.root: there is no folder .*nowhere"):
        find_root(str(tmp_path / "nowhere"))


def test_label_images_are_listed_only_on_request(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/7.png" for folder in ("images", "masks", "labels")))
    config = small_config(f"data.root={tmp_path}", "data.instances=labels")
    (without,), _ = list_pairs(config)
    (pair,), _ = list_pairs(config, instances=True)
    assert without.instances is None
    assert Path(str(pair.instances)).parent.name == "labels"
    assert list_validation_pairs(config) == ([], [])


def test_classes_have_the_values_of_the_config() -> None:
    config = small_config("data.classes={a: 3, b: 9}", "data.ignore=[7]", "data.tolerance=1")
    classes = build_classes(config)
    assert (classes.names, classes.tolerance) == (("a", "b"), 1)
    assert classes.decode(np.array([[3, 9, 7, 10]]), "mask").tolist() == [[0, 1, 255, 1]]


def test_only_the_training_reader_has_border_weights() -> None:
    config = small_config("loss.border={weight: 3, classes: [cell]}", "model.in_channels=2")
    border = build_training_reader(config).border
    assert border is not None
    assert (border.weight, border.sigma, border.classes) == (3, 5, (1,))
    reader = build_reader(config)
    assert (reader.border, reader.in_channels, reader.mask_per_class) == (None, 2, False)
    assert build_reader(small_config("data.masks={cell: cells}")).mask_per_class


def test_a_normalization_is_built_unless_the_images_determine_it() -> None:
    fixed = small_config("data.normalization={mean: [0, 0, 0.5], std: [1, 1, 2]}")
    normalization = build_normalization(fixed)
    assert normalization is not None
    assert normalization.to_dict() == {"method": "given", "mean": (0, 0, 0.5), "std": (1, 1, 2)}
    percentiles = build_normalization(small_config("data.normalization=percentiles"))
    assert percentiles is not None
    assert percentiles.method == "percentiles"
    assert build_normalization(small_config()) is None
    assert build_normalization(small_config("data.normalization=dataset")) is None


def test_pretrained_encoders_bring_a_normalization_unless_another_is_set() -> None:
    pretrained = ["model.encoder=resnet18", "train.encoder_weights=DEFAULT"]
    normalization = build_encoder_normalization(small_config(*pretrained))
    assert normalization is not None
    assert normalization.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert build_encoder_normalization(small_config(pretrained[0])) is None
    dataset = small_config(*pretrained, "data.normalization=dataset")
    assert build_encoder_normalization(dataset) is None


def test_the_augmentation_has_the_settings_and_the_context_of_the_network() -> None:
    padded = build_transforms(small_config("augment={crop: [64, 32], rotate: 7, contrast: 0.5}"))
    assert (padded.crop, padded.rotate, padded.contrast) == ((64, 32), 7, 0.5)
    assert (padded.context, padded.size_multiple, padded.size_remainder) == (0, 1, 0)
    valid = build_transforms(small_config("model.padding=valid"))
    assert (valid.context, valid.size_multiple, valid.size_remainder) == (92, 16, 4)


def test_the_network_has_the_settings_of_the_config() -> None:
    config = small_config("model={in_channels: 2, widths: [4, 8], norm: none}")
    net = build_network(config, torch.device("cpu"))
    assert net(torch.zeros(1, 2, 8, 6)).shape == (1, 2, 8, 6)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    assert memory_format(config) is torch.channels_last
    assert memory_format(small_config("train.channels_last=false")) is torch.contiguous_format


def test_the_loss_has_the_settings_of_the_config() -> None:
    config = small_config("loss={cross_entropy: 2, dice: 0.5, class_weights: [1, 3]}")
    loss = build_loss(config, np.array([1, 1]))
    assert (loss.cross_entropy, loss.dice) == (2, 0.5)
    assert loss.class_weights is not None
    assert loss.class_weights.tolist() == [1, 3]
    assert build_loss(small_config(), np.array([1, 1])).class_weights is None


@pytest.mark.usefixtures("workdir")
def test_regions_to_ignore_become_unlabelled_pixels(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "disputed").mkdir()
    regions = np.zeros((HEIGHT, WIDTH), np.uint8)
    regions[3:9, 10:30] = 7
    Image.fromarray(regions).save(tmp_path / "disputed" / "2.png")
    config = make_config(data_root, f"data.ignore_regions={tmp_path / 'disputed'}")
    plain, pairs = list_pairs(make_config(data_root))[0], list_pairs(config)[0]
    for before, pair in zip(plain, pairs, strict=True):
        ids, old = build_reader(config)(pair)[1], build_reader(config)(before)[1]
        ignored = regions > 0 if pair.stem == "2" else np.zeros_like(regions, bool)
        assert (ids[ignored] == 255).all()
        assert np.array_equal(ids[~ignored], old[~ignored])
    # The statistics of `unet check` are of the same pixels, also where they were cached before.
    checked = [check_data(one) for one in (make_config(data_root), config)]
    whole, rest = (one.train.class_pixels.sum() + one.val.class_pixels.sum() for one in checked)
    assert whole - rest == 6 * 20


@pytest.mark.usefixtures("workdir")
def test_a_folder_of_regions_that_is_missing_or_does_not_fit_is_an_error(
    data_root: Path, tmp_path: Path
) -> None:
    config = make_config(data_root, f"data.ignore_regions={tmp_path / 'disputed'}")
    with pytest.raises(FileNotFoundError, match=r"data.ignore_regions: there is no folder"):
        list_pairs(config)
    (tmp_path / "disputed").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "disputed" / "3.png")
    assert "3.png: got a mask of 4 x 4 pixels" in check_data(config).errors[0]
