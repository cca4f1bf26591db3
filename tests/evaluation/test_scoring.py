import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config, metrics_of, write_instances, write_pairs
from PIL import Image

from unet import load_model, predict
from unet.data.image_file import ImageFile
from unet.data.image_io import read_image, to_float
from unet.data.image_types import Pixels
from unet.data.pairing import find_pairs
from unet.evaluation.evaluate import evaluate
from unet.evaluation.scoring import score_pairs
from unet.inspection.check import check_data

pytestmark = pytest.mark.usefixtures("workdir")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been decoded, by its name in its folder."""
    counts: Counter[str] = Counter()
    read = ImageFile.read

    def count(file: ImageFile, *args: Any) -> Pixels:
        counts["/".join(file.path.parts[-2:])] += 1
        return read(file, *args)

    monkeypatch.setattr(ImageFile, "read", count)
    return counts


def test_every_file_is_decoded_once(
    best: Path, copied: Path, new: dict[str, str], decoded: Counter[str]
) -> None:
    evaluate(best, **new, out="scores")
    expected = {f"{folder}/{i}.png": 1 for folder in ("images", "masks") for i in range(5)}
    assert decoded == expected

    decoded.clear()
    write_instances(copied)
    settings = {"data.root": copied, "data.instances": "instances"}
    summary = evaluate(best, objects=True, out="objects", overrides=settings)
    folders = ("images", "masks", "instances")
    assert decoded == {f"{folder}/{s}.png": 1 for folder in folders for s in summary.stems}


def test_images_that_are_not_kept_are_decoded_again_for_the_same_report(
    best: Path, new: dict[str, str], decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(best, **new, out="kept")
    monkeypatch.setattr("unet.evaluation.evaluate._MOST_KEPT", 0)
    decoded.clear()
    evaluate(best, **new, out="again")
    reports = [Path(folder, "report.html").read_text() for folder in ("kept", "again")]
    assert reports[0] == reports[1]
    assert decoded["images/0.png"] == 2


def test_validation_counts_the_same_pixels_and_returns_the_images_it_is_asked_for(
    best: Path, evaluated: Path, trained: Path
) -> None:
    model, pairs = load_model(best), check_data(make_config(trained / "data")).val_pairs
    matrix, kept, none = score_pairs(model, pairs, "validate", keep=[1, 0])
    assert math.isnan(none)
    assert matrix.tolist() == metrics_of(evaluated)["confusion_matrix"]
    for pair, one in zip((pairs[1], pairs[0]), kept, strict=True):
        assert np.array_equal(one.image.numpy(), to_float(read_image(pair.images[0], 1)))
        assert np.array_equal(one.prediction, predict(model, pair.images[0]))
        with Image.open(pair.masks[0]) as mask:
            assert np.array_equal(one.target == 1, np.asarray(mask) == 200)
    assert score_pairs(model, pairs, "validate")[1] == []


def test_images_of_one_size_in_a_row_are_validated_together(
    best: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(data_root / "more", 6, seed=3)
    for name in ("images", "masks"):
        path = data_root / "more" / name / "3.png"
        with Image.open(path) as image:
            image.crop((0, 0, 20, 30)).save(path)
    pairs = find_pairs(data_root / "more", ["images"], "masks")[0]
    model = load_model(best)
    shapes = []
    model.net.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    matrix = score_pairs(model, pairs, "validate")[0]
    assert shapes == [(3, 1, 36, 52), (1, 1, 30, 20), (2, 1, 36, 52)]
    monkeypatch.setattr("unet.inference.predictor._CPU_BATCH_PIXELS", 0)
    assert torch.equal(matrix, score_pairs(model, pairs, "validate")[0])
    assert len(shapes) == 3 + 6
