from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_config, make_model
from PIL import Image

from unet import evaluate, load_model, predict, train
from unet.build import build_reader, build_training_reader, list_pairs
from unet.checkpoint import save_checkpoint
from unet.data.image_io import read_image, to_float
from unet.data.resize import resize_area, resize_nearest
from unet.inference.export import export
from unet.inference.predict import predict_files


def test_pixels_are_averaged_and_ids_are_taken_from_the_centre() -> None:
    image = torch.arange(24.0).reshape(1, 4, 6)
    assert resize_area(image, (2, 3))[0].tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert resize_nearest(ids, (2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert np.array_equal(resize_nearest(ids, (4, 6)), ids)


def test_missing_pixels_do_not_count_in_averages() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    image[0, 0, 0] = image[0, 2:, 2:] = torch.nan
    resized = resize_area(image, (2, 2))[0]
    assert resized[0, 0] == pytest.approx((1 + 4 + 5) / 3)
    assert resized[1, 1].isnan()


def test_training_and_prediction_resize_the_same_way(data_root: Path) -> None:
    config = make_config(data_root, "data.scale=0.5", "augment.crop=[8, 16]")
    pairs, _ = list_pairs(config)
    image, ids = build_training_reader(config).read(pairs[0])
    whole, whole_ids = build_reader(config).read(pairs[0])
    assert image.shape == (1, whole.shape[1] // 2, whole.shape[2] // 2)
    assert np.array_equal(ids, resize_nearest(whole_ids, image.shape[1:]))
    small = resize_area(torch.from_numpy(to_float(whole)), image.shape[1:])
    assert np.array_equal(image, small.numpy())


@pytest.mark.usefixtures("workdir")
def test_masks_have_the_size_of_the_image(data_root: Path) -> None:
    run = train(make_config(data_root, "data.scale=0.5", "augment.crop=[16, 16]"))
    predict_files([run / "best.pt"], [str(data_root / "images")], Path("out"))
    with Image.open("out/0.png") as mask, Image.open(data_root / "images" / "0.png") as image:
        assert mask.size == image.size
    model = load_model(run / "best.pt")
    path = data_root / "images" / "0.png"
    logits = model.logits(torch.from_numpy(to_float(read_image(path, 1))))
    assert np.array_equal(predict(model, path), logits.argmax(0).numpy())
    # The scores are those of masks of the image's size.
    predict_files([run / "best.pt"], [str(data_root / "images")], Path("all"))
    stems, right, total = model.val_stems, 0, 0
    for stem in stems:
        with (
            Image.open(f"all/{stem}.png") as mask,
            Image.open(data_root / "masks" / f"{stem}.png") as target,
        ):
            same = np.asarray(mask) == np.asarray(target)
        right, total = right + int(same.sum()), total + same.size
    assert evaluate(run / "best.pt").pixel_accuracy == pytest.approx(right / total)


def test_a_label_image_of_another_size_is_an_error(data_root: Path) -> None:
    config = make_config(data_root, "data.scale=0.5", "data.instances=cells")
    (data_root / "cells").mkdir()
    for path in (data_root / "masks").iterdir():
        with Image.open(path) as mask:
            numbers = np.asarray(mask) // 200
        numbers = numbers if path.stem != "0" else numbers[:-7, :-5]
        Image.fromarray(numbers).save(data_root / "cells" / path.name)
    pairs, _ = list_pairs(config, instances=True)
    reader = build_training_reader(config)
    with pytest.raises(
        ValueError, match=r"cells/0\.png: got a label image of .* expected the size"
    ):
        reader.label_image(pairs[0], reader.read(pairs[0])[1])
    assert reader.label_image(pairs[1], reader.read(pairs[1])[1]).max() == 1


def test_a_model_that_resizes_is_not_exported(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", make_model(tmp_path, "data.scale=0.5").contents())
    with pytest.raises(ValueError, match=r"export: got a model with data\.scale 0\.5, expected 1"):
        export(tmp_path / "best.pt", tmp_path / "model.pt2")
