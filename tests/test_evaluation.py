import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_config, make_model, write_pairs
from PIL import Image

from unet import load_model, predict
from unet.check import check_data, pair_reader
from unet.evaluation import (
    Segmented,
    confusion_of_pairs,
    confusion_table,
    evaluate,
    score_table,
)
from unet.images import to_float
from unet.metrics import scores
from unet.pairs import find_pairs
from unet.training import train

pytestmark = pytest.mark.usefixtures("workdir")


@pytest.fixture
def run(data_root: Path, workdir: Path) -> Path:
    assert workdir == Path.cwd()
    return train(make_config(data_root, "train.epochs=4", "train.previews=0"))


def counted_by_hand(checkpoint: Path, pairs: list) -> np.ndarray:
    model, matrix = load_model(checkpoint), np.zeros((2, 2), int)
    for pair in pairs:
        with Image.open(pair.masks[0]) as mask:
            truth = (np.asarray(mask) == 200).astype(int)
        np.add.at(matrix, (truth, predict(model, pair.images[0])), 1)
    return matrix


def test_the_validation_split_is_scored_from_the_checkpoint_alone(
    run: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluate([run / "best.pt"])
    assert path == run / "evaluation_best" / "metrics.json"
    report = json.loads(path.read_text())
    val_pairs = check_data(make_config(data_root)).val_pairs
    matrix = counted_by_hand(run / "best.pt", val_pairs)
    assert report["confusion_matrix"] == matrix.tolist()
    assert report["images"] == [pair.stem for pair in val_pairs]
    assert report["iou"][1] == pytest.approx(
        matrix[1, 1] / (matrix[1].sum() + matrix[:, 1].sum() - matrix[1, 1])
    )
    assert report["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    shown = capsys.readouterr().out
    assert f"{report['iou'][1]:.4f}" in shown
    assert "2 images of the validation split" in shown


def test_another_folder_is_scored(run: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "new", 3, seed=7)
    images, masks = tmp_path / "new" / "images", tmp_path / "new" / "masks"
    path = evaluate(
        [run / "last.pt"], images=str(images), masks=str(masks), out=tmp_path / "scores"
    )
    report = json.loads(path.read_text())
    matrix = counted_by_hand(run / "last.pt", find_pairs(Path(), [str(images)], str(masks))[0])
    assert report["confusion_matrix"] == matrix.tolist()


def test_the_validation_images_stay_those_of_the_run(run: Path, data_root: Path) -> None:
    before = json.loads(evaluate([run / "best.pt"]).read_text())
    write_pairs(data_root / "more", 4, seed=8)
    for i, folder in itertools.product(range(4), ("images", "masks")):
        (data_root / "more" / folder / f"{i}.png").rename(data_root / folder / f"1{i}.png")
    assert json.loads(evaluate([run / "best.pt"], overwrite=True).read_text()) == before
    stem = before["images"][0]
    for folder in ("images", "masks"):
        (data_root / folder / f"{stem}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"got no pair {stem}, expected the 2 validation"):
        evaluate([run / "best.pt"], overwrite=True)


def test_data_that_moved_is_found_by_an_override(run: Path, data_root: Path) -> None:
    data_root.rename(data_root.with_name("moved"))
    with pytest.raises(FileNotFoundError, match=r"data\.root: there is no folder"):
        evaluate([run / "best.pt"])
    assert evaluate([run / "best.pt"], [f"data.root={data_root.with_name('moved')}"]).exists()


def test_results_are_not_overwritten_unasked(run: Path) -> None:
    evaluate([run / "best.pt"])
    with pytest.raises(FileExistsError, match=r"metrics\.json: exists; pass --overwrite"):
        evaluate([run / "best.pt"])
    evaluate([run / "best.pt"], overwrite=True)


def test_masks_of_other_values_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "new", 1)
    mask = tmp_path / "new" / "masks" / "0.png"
    Image.fromarray(np.full((36, 52), 77, np.uint8)).save(mask)
    with pytest.raises(ValueError, match=r"0\.png: got the mask value 77"):
        evaluate([run / "best.pt"], images=f"{tmp_path}/new/images", masks=f"{tmp_path}/new/masks")
    assert not (run / "evaluation_best").exists()


def test_images_need_masks(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got one of --images and --masks"):
        evaluate([run / "best.pt"], images=tmp_path)


def test_tables_show_what_has_no_score() -> None:
    matrix = torch.tensor([[4, 0, 0], [2, 2, 0], [0, 0, 0]])
    lines = score_table(scores(matrix), ["ground", "cell", "never"]).splitlines()
    assert lines[0].split() == ["class", "IoU", "Dice", "precision", "recall"]
    assert lines[3].split() == ["never", "-", "-", "-", "-"]
    assert lines[4].split() == ["mean", "0.5833", "0.7333"]
    assert "1 class(es) in neither target nor prediction have none" in lines[-1]
    lines = confusion_table(matrix, ["ground", "cell", "never"]).splitlines()
    assert lines[3].split() == ["1", "cell", "50.0", "50.0", "0.0"]
    assert lines[4].split() == ["2", "never", "-", "-", "-"]


def test_pairs_to_look_at_come_with_their_predictions(data_root: Path) -> None:
    model, pairs = make_model(data_root), find_pairs(data_root, ["images"], "masks")[0]
    seen: dict[int, Segmented] = {}
    matrix = confusion_of_pairs(model, pairs, "look", places=[1, 4], seen=seen)
    assert torch.equal(matrix, confusion_of_pairs(model, pairs, "look"))
    assert sorted(seen) == [1, 4]
    for place, (image, target, prediction) in seen.items():
        pixels, ids = pair_reader(model.config)(pairs[place])
        assert torch.equal(image, torch.from_numpy(to_float(pixels)))
        assert np.array_equal(target, ids)
        assert np.array_equal(prediction, model.predict(image).numpy())
