import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import files_in, make_model, values_of
from PIL import Image, ImageSequence

from unet import load_model
from unet.checkpoint import save_checkpoint
from unet.inference.predict import Options, UnpredictedError, predict_files
from unet.inference.predictor import Ensemble, Predictor
from unet.inference.uncertainty import draw_uncertainty, normalized_entropy, predict_uncertainty

pytestmark = pytest.mark.usefixtures("workdir")

UNSURE = Options(uncertainty=True)
# -(0.9 log2 0.9 + 0.1 log2 0.1)
NINE_TO_ONE = 0.468996


def rows_of(folder: str) -> list[dict[str, str]]:
    with Path(folder, "uncertain.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def constant_model(folder: Path, probability: float) -> Predictor:
    """A model that gives the second class this probability everywhere."""
    model = make_model(folder)
    torch.nn.init.zeros_(model.net.head.weight)
    odds = torch.tensor([0.0, math.log(probability / (1 - probability))])
    model.net.head.bias.data = odds
    return model


@pytest.mark.parametrize(
    ("probabilities", "entropy"),
    [
        ((0.5, 0.5), 1),
        ((1, 0), 0),
        ((0.9, 0.1), NINE_TO_ONE),
        ((0.25, 0.25, 0.25, 0.25), 1),
        ((0.5, 0.5, 0, 0), 0.5),
        ((0.5, 0.25, 0.25), 1.5 / math.log2(3)),
    ],
)
def test_entropy_is_0_for_certain_pixels_and_1_for_equal_probabilities(
    probabilities: tuple[float, ...], entropy: float
) -> None:
    image = torch.tensor(probabilities)[:, None, None].expand(-1, 2, 3)
    assert normalized_entropy(image).numpy() == pytest.approx(np.full((2, 3), entropy), abs=1e-5)


def test_members_disagree_by_the_mutual_information_of_class_and_member(tmp_path: Path) -> None:
    models = [constant_model(tmp_path, p) for p in (0.9, 0.1, 0.9)]
    image = torch.rand(1, 20, 30)
    probabilities, alone = predict_uncertainty(models[0], image)
    assert probabilities[1].numpy() == pytest.approx(np.full((20, 30), 0.9), abs=1e-5)
    assert alone.means == {"entropy": pytest.approx(NINE_TO_ONE, abs=1e-5)}
    means = predict_uncertainty(Ensemble((models[0], models[1])), image)[1].means
    assert means == {
        "entropy": pytest.approx(1, abs=1e-5),
        "disagreement": pytest.approx(1 - NINE_TO_ONE, abs=1e-5),
    }
    means = predict_uncertainty(Ensemble((models[0], models[2])), image, ["flips"])[1].means
    assert means["disagreement"] == pytest.approx(0, abs=1e-5)
    assert means["entropy"] == pytest.approx(NINE_TO_ONE, abs=1e-5)


def test_images_are_listed_from_the_most_uncertain_and_drawn(
    checkpoint: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(data_root / "images")
    predict_files([checkpoint], [images], Path("plain"))
    predict_files([checkpoint], [images], Path("out"), UNSURE)
    names = [f"{i}.png" for i in range(6)]
    assert files_in("out") == [*names, "uncertain.csv", *(f"uncertainty/{one}" for one in names)]
    for name in names:
        assert np.array_equal(values_of(Path("out", name)), values_of(Path("plain", name)))
    rows = rows_of("out")
    assert list(rows[0]) == ["image", "page", "entropy"]
    entropies = [float(row["entropy"]) for row in rows]
    assert entropies == sorted(entropies, reverse=True)
    assert 0 < entropies[-1] < entropies[0] < 1
    assert {row["image"] for row in rows} == {f"{images}/{name}" for name in names}
    first = rows[0]["image"]
    assert f"most uncertain: {first} ({entropies[0]:.3f}), " in capsys.readouterr().out

    model = load_model(checkpoint)
    image = torch.from_numpy(values_of(Path(first)) / np.float32(255))[None]
    entropy = normalized_entropy(model.logits(image).softmax(0)).numpy()
    assert entropies[0] == pytest.approx(entropy.mean(), abs=1e-5)
    drawn = values_of(Path("out/uncertainty", Path(first).name))
    assert np.array_equal(drawn, draw_uncertainty(image, torch.from_numpy(entropy)))


def test_certain_pixels_are_grey_half_certain_ones_red_and_others_yellow() -> None:
    image = torch.full((3, 2, 3), 0.8)
    drawn = draw_uncertainty(image, torch.tensor([0, 0.5, 1]).expand(2, -1))
    assert drawn.shape == (2, 3, 3)
    grey, red, yellow = drawn[0].tolist()
    assert grey == [102, 102, 102]
    assert red[0] > 200 > 40 > max(red[1:])
    assert yellow == [255, 255, 0]


def test_the_network_runs_once_for_each_image(
    checkpoint: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def count(self: Predictor, images: torch.Tensor) -> torch.Tensor:
        runs.append(len(images))
        return run(self, images)

    run = Predictor._run
    monkeypatch.setattr(Predictor, "_run", count)
    options = Options(uncertainty=True, probabilities=True, overlay=True)
    predict_files([checkpoint], [str(data_root / "images")], Path("out"), options)
    assert sum(runs) == 6


def test_kept_images_stay_in_the_table(checkpoint: Path, data_root: Path) -> None:
    images = data_root / "images"
    predict_files([checkpoint], [str(images)], Path("out"), UNSURE)
    table = Path("out/uncertain.csv").read_bytes()
    for name in ("uncertain.csv", "0.png"):
        Path("out", name).unlink()
    predict_files([checkpoint], [str(images)], Path("out"), UNSURE)
    assert Path("out/uncertain.csv").read_bytes() == table
    # Masks that were predicted without it are predicted again.
    predict_files([checkpoint], [str(images)], Path("later"))
    predict_files([checkpoint], [str(images)], Path("later"), UNSURE)
    assert Path("later/uncertain.csv").read_bytes() == table
    with pytest.raises(FileExistsError, match=r"uncertainty/0\.png: exists and belongs to out/0"):
        predict_files([checkpoint], [str(images)], Path("out"), overwrite=True)
    Image.new("L", (5, 5)).save("out/uncertainty/3.png")
    with pytest.raises(FileExistsError, match=r"uncertainty/3\.png: exists, and nothing in it"):
        predict_files([checkpoint], [str(images)], Path("out"), UNSURE)


def test_equal_images_stay_in_order_and_unreadable_ones_are_left_out(checkpoint: Path) -> None:
    for name in ("b", "a", "d"):
        Image.new("L", (30, 20), 90).save(f"{name}.png")
    Path("c.png").write_bytes(b"damaged")
    with pytest.raises(UnpredictedError):
        predict_files([checkpoint], ["d.png", "c.png", "b.png", "a.png"], Path("out"), UNSURE)
    assert [row["image"] for row in rows_of("out")] == ["d.png", "b.png", "a.png"]


def test_each_page_of_a_stack_is_listed(checkpoint: Path) -> None:
    pages = [Image.effect_noise((30, 20), spread) for spread in (1, 90, 30)]
    pages[0].save("stack.tif", save_all=True, append_images=pages[1:])
    for i, page in enumerate(pages):
        page.save(f"{i}.png")
    predict_files([checkpoint], ["stack.tif", *(f"{i}.png" for i in range(3))], Path("out"), UNSURE)
    with Image.open("out/uncertainty/stack.tif") as file:
        assert [page.mode for page in ImageSequence.Iterator(file)] == ["RGB"] * 3
    rows = rows_of("out")
    of_pages = {int(row["page"]): row["entropy"] for row in rows if row["page"]}
    alone = {int(row["image"][0]) + 1: row["entropy"] for row in rows if not row["page"]}
    assert of_pages == alone
    assert len(set(alone.values())) == 3


def test_missing_pixels_do_not_count(tmp_path: Path) -> None:
    model = constant_model(tmp_path, 0.9)
    save_checkpoint(Path("best.pt"), model.contents())
    pixels = np.full((20, 30), 0.4, np.float32)
    for name, part in (("half", np.s_[:10]), ("all", np.s_[:])):
        missing = pixels.copy()
        missing[part] = np.nan
        Image.fromarray(missing).save(f"{name}.tif")
    predict_files(["best.pt"], ["all.tif", "half.tif"], Path("out"), UNSURE)
    assert [(row["image"], row["entropy"]) for row in rows_of("out")] == [
        ("half.tif", "0.468996"),
        ("all.tif", ""),
    ]
    drawn = values_of(Path("out/uncertainty/half.png")).astype(int)
    assert np.ptp(drawn, axis=2)[:10].max() == 0 < np.ptp(drawn, axis=2)[10:].min()
