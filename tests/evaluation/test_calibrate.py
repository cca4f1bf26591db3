from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_pairs

import unet
from unet.checkpoint import load_checkpoint
from unet.evaluation.calibrate import calibrate
from unet.inference.info import describe_checkpoint
from unet.inference.options import OptionError


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_pairs(folder / "data", 24, seed=5)
    return folder / "data"


@pytest.fixture(scope="module")
def promised(best: Path, other: Path) -> Path:
    """A checkpoint that promises to miss at most 5 % of the boxes."""
    images, masks = other / "images", other / "masks"
    out = other.parent / "promised.pt"
    calibrate(best, out, max_missed=0.05, images=images, masks=masks)
    return out


def test_a_calibrated_checkpoint_has_the_same_classes_and_better_probabilities(
    best: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.pt"
    found = calibrate(best, out)
    before, after = unet.evaluate(best), unet.evaluate(out)
    assert found.temperature != 1
    assert found.errors == pytest.approx(
        (before.expected_calibration_error, after.expected_calibration_error), abs=1e-6
    )
    assert after.expected_calibration_error < before.expected_calibration_error
    assert after.mean_iou == before.mean_iou
    one, other = load_checkpoint(best), load_checkpoint(out)
    assert other["calibration"]["temperature"] == found.temperature
    assert all(torch.equal(other["model"][name], x) for name, x in one["model"].items())
    assert f"temperature {found.temperature:.4g}, fitted on" in describe_checkpoint(out)


def test_an_exported_file_has_calibrated_probabilities(best: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibrated.pt"
    temperature = calibrate(best, out).temperature
    unet.export(out, tmp_path / "model.onnx")  # compares the probabilities
    image = np.random.default_rng(0).integers(0, 255, (36, 52), np.uint8)
    expected = unet.predict(out, image, probabilities=True)
    result = unet.predict(tmp_path / "model.onnx", image, probabilities=True)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    raw = unet.predict(best, image, probabilities=True)
    logits = np.log(raw[1] / raw[0]) / temperature
    np.testing.assert_allclose(expected[1], 1 / (1 + np.exp(-logits)), atol=1e-4)
    with pytest.raises(ValueError, match=r"is an exported file, expected a checkpoint"):
        calibrate(tmp_path / "model.onnx")


def test_the_promised_threshold_is_used_and_said(
    promised: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (promise,) = [
        one for one in load_checkpoint(promised)["calibration"]["promises"] if one["class_id"] == 1
    ]
    assert promise["images"] == 24
    image = other / "images" / "3.png"
    probabilities = unet.predict(promised, image, probabilities=True)
    mask = unet.predict(promised, image)
    np.testing.assert_array_equal(mask, probabilities[1] >= promise["threshold"])
    unet.inference.predict.predict_files([promised], [str(image)], tmp_path / "out")
    said = capsys.readouterr().out
    assert "in 95 % of images like the 24 that this was calibrated on, at most 0.05 of its" in said
    scores = unet.evaluate(promised, images=other / "images", masks=other / "masks")
    assert "at most 0.05 of its pixels are missed" in scores.title
    assert (scores.columns["recall"][:, 1] >= 0.95).sum() >= 23


def test_what_would_break_a_promise_is_an_error(promised: Path, best: Path, other: Path) -> None:
    image = other / "images" / "3.png"
    with pytest.raises(OptionError, match="got tta with a model that promises"):
        unet.predict(promised, image, tta=["flips"])
    with pytest.raises(OptionError, match="got other models with a model that promises"):
        unet.predict([promised, best], image)
    with pytest.raises(OptionError, match=r"got 'box', expected a class with a promise of"):
        unet.predict(best, image, promise="box")
    unet.predict(promised, image, tta=["flips"], threshold=0.5)


def test_too_few_images_for_a_promise_are_an_error(best: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got images .*, expected 19 or more with a class other"):
        calibrate(best, tmp_path / "out.pt", max_missed=0.05)
    assert not (tmp_path / "out.pt").exists()
