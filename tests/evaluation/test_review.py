import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import make_config, write_pairs
from PIL import Image

from unet.build import list_pairs
from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.config.loader import load_config
from unet.evaluation.calibrate import calibrate
from unet.evaluation.folds import find_folds
from unet.evaluation.review import review
from unet.training.series import configs_of_series, train_series
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")

FOLDS = ["data.validation={folds: 2}", "train.epochs=12", "model.widths=[8,16]"]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folds of a data set, in which the mask of an image is moved."""
    folder = tmp_path_factory.mktemp("series")
    write_pairs(folder / "data", 12)
    path = folder / "data" / "masks" / "5.png"
    Image.fromarray(np.roll(np.asarray(Image.open(path)), (4, -5), (0, 1))).save(path)
    config = make_config(folder / "data", f"runs={folder / 'runs'}", *FOLDS)
    train_series(config, all_folds=True)
    return [folder / "runs" / one.name for one in configs_of_series(config, all_folds=True)]


def test_the_wrong_mask_is_found_and_shown(series: list[Path]) -> None:
    result = review(series, "review")
    assert result.stems[0] == "5"
    assert result.verdicts[0].reason == "shifted by (4, -5)"
    assert len(result.stems) == 12
    assert str(result).splitlines()[1].endswith("5: shifted by (4, -5)")
    with Path("review/review.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stem"] for row in rows] == list(result.stems)
    assert (rows[0]["shift_down"], rows[0]["shift_right"]) == ("4", "-5")
    page = Path("review/review.html").read_text()
    assert page.index("shifted by (4, -5)") < page.index("Groups of images")
    assert page.count("<figure>") == 10
    assert "Traceback" not in page
    assert len(list(Path("review/disputed").iterdir())) == result.num_suspects


def test_disputed_regions_can_be_left_out_of_a_training(series: list[Path]) -> None:
    review(series[:1], "review")  # the other fold is found next to it
    regions = np.asarray(Image.open("review/disputed/5.png"))
    assert set(np.unique(regions)) == {0, 255}
    config = load_config(series[0] / "config.yaml", ["data.ignore_regions=review/disputed"])
    (pair,) = (pair for pair in list_pairs(config)[0] if pair.stem == "5")
    assert pair.regions == "review/disputed/5.png"


def test_an_existing_review_is_replaced_only_on_request(series: list[Path]) -> None:
    review(series, "review")
    with pytest.raises(FileExistsError, match=r"review.html: exists; pass overwrite=True"):
        review(series, "review")
    Path("review/disputed/old.png").write_bytes(b"")
    review(series, "review", overwrite=True)
    assert not Path("review/disputed/old.png").exists()


def test_several_processes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="review: got 2 processes, expected one; start it without"):
        review(["runs/one"], "review")
    with pytest.raises(ValueError, match="calibrate: got 2 processes, expected one"):
        calibrate("best.pt")


def test_a_missing_fold_is_an_error(series: list[Path], data_root: Path) -> None:
    config = make_config(data_root, *FOLDS, "train.epochs=1", "name=alone")
    run = train(configs_of_series(config, all_folds=True)[1])
    with pytest.raises(FileNotFoundError, match="no run of fold 0; train all 2 folds"):
        find_folds([run])
    with pytest.raises(ValueError, match="has other folds or classes than"):
        find_folds([series[0], _with_other_classes(data_root)])


def _with_other_classes(data_root: Path) -> Path:
    settings = ["data.classes={a: 0, b: 200}", "train.epochs=1", "name=other"]
    config = make_config(data_root, "data.validation={folds: 2}", *settings)
    return train(configs_of_series(config, all_folds=True)[0])


def test_a_model_without_folds_is_an_error(data_root: Path) -> None:
    run = train(make_config(data_root, "train.epochs=1"))
    with pytest.raises(ValueError, match=r"best.pt: was not trained on a fold"):
        review([run], "review")
    assert not Path("review").exists()


def test_an_unfinished_fold_is_an_error(series: list[Path]) -> None:
    shutil.copytree(series[0], "tiny_fold0")
    state = load_checkpoint(Path("tiny_fold0/last.pt"))
    state["progress"]["history"].pop()
    save_checkpoint(Path("tiny_fold0/last.pt"), state)
    with pytest.raises(ValueError, match=r"got 11 of 12 epochs, expected a finished run; finish"):
        find_folds(["tiny_fold0", series[1]])
