import dataclasses
import math
import statistics

import numpy as np
import pytest
import torch

from unet.metrics.confusion import Scores, confusion_matrix, score_values, scores, spread


def test_the_matrix_counts_target_rows_and_predicted_columns() -> None:
    target = torch.tensor([[0, 0, 1], [1, 2, 255]])
    prediction = torch.tensor([[0, 1, 1], [1, 0, 2]])
    matrix = confusion_matrix(prediction, target, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix.dtype == torch.int64


def test_scores_equal_hand_computed_ones() -> None:
    # target 0: 3 right, 1 taken for 1; target 1: 2 right, 2 taken for 0.
    result = scores(torch.tensor([[3, 1], [2, 2]]))
    assert result.iou == pytest.approx([3 / 6, 2 / 5])
    assert result.dice == pytest.approx([6 / 9, 4 / 7])
    assert result.precision == pytest.approx([3 / 5, 2 / 3])
    assert result.recall == pytest.approx([3 / 4, 2 / 4])
    assert result.pixel_accuracy == pytest.approx(5 / 8)
    assert result.mean_iou == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert result.mean_dice == pytest.approx((6 / 9 + 4 / 7) / 2)


def test_scores_equal_those_of_sets_of_pixels() -> None:
    torch.manual_seed(0)
    target, prediction = torch.randint(0, 4, (500,)), torch.randint(0, 4, (500,))
    target[::7] = 255
    result = scores(confusion_matrix(prediction, target, 4))
    counted = {i for i in range(500) if target[i] != 255}
    for k in range(4):
        truth = {i for i in counted if target[i] == k}
        found = {i for i in counted if prediction[i] == k}
        assert result.iou[k] == pytest.approx(len(truth & found) / len(truth | found))
        assert result.dice[k] == pytest.approx(2 * len(truth & found) / (len(truth) + len(found)))
        assert result.precision[k] == pytest.approx(len(truth & found) / len(found))
        assert result.recall[k] == pytest.approx(len(truth & found) / len(truth))


def test_an_absent_class_has_no_score_and_does_not_enter_the_mean() -> None:
    result = scores(torch.tensor([[4, 0, 0], [2, 2, 0], [0, 0, 0]]))
    assert math.isnan(result.iou[2])
    assert math.isnan(result.dice[2])
    assert result.mean_iou == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_a_class_in_target_or_prediction_only_scores_0_in_all() -> None:
    for matrix in (torch.tensor([[4, 0], [2, 0]]), torch.tensor([[4, 2], [0, 0]])):
        result = scores(matrix)
        assert result.iou[1] == result.dice[1] == result.precision[1] == result.recall[1] == 0
        assert result.mean_precision == result.precision[0] / 2
        assert result.mean_recall == result.recall[0] / 2
        assert result.mean_precision_foreground == result.mean_recall_foreground == 0
        assert result.micro_precision_foreground == result.micro_recall_foreground == 0


def test_never_predicting_a_class_is_not_rewarded() -> None:
    never, once = (scores(torch.tensor(rows)) for rows in ([[900, 0], [100, 0]],
                                                           [[899, 1], [100, 0]]))  # fmt: skip
    for name in ("iou", "dice", "precision", "recall"):
        difference = getattr(never, f"mean_{name}") - getattr(once, f"mean_{name}")
        assert 0 <= difference < 1e-3, name


def test_matrices_of_images_add_up() -> None:
    target, prediction = torch.randint(0, 3, (6, 9, 9)), torch.randint(0, 3, (6, 9, 9))
    added = sum(confusion_matrix(p, t, 3) for p, t in zip(prediction, target, strict=True))
    assert torch.equal(added, confusion_matrix(prediction, target, 3))


def test_means_micro_and_weighted_scores_equal_hand_computed_ones() -> None:
    # target 0: 6 right, 2 taken for 1; target 1: 1 right, 1 taken for 2; target 2: 3 right, 1 for 0
    result = scores(torch.tensor([[6, 2, 0], [0, 1, 1], [1, 0, 3]]))
    assert result.iou == pytest.approx([6 / 9, 1 / 4, 3 / 5])
    assert result.mean_iou == pytest.approx((6 / 9 + 1 / 4 + 3 / 5) / 3)
    assert result.mean_iou_foreground == pytest.approx((1 / 4 + 3 / 5) / 2)
    assert result.mean_dice_foreground == pytest.approx((2 / 5 + 6 / 8) / 2)
    assert result.mean_precision == pytest.approx((6 / 7 + 1 / 3 + 3 / 4) / 3)
    assert result.mean_precision_foreground == pytest.approx((1 / 3 + 3 / 4) / 2)
    assert result.mean_recall == pytest.approx((6 / 8 + 1 / 2 + 3 / 4) / 3)
    assert result.mean_recall_foreground == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert result.pixel_accuracy == pytest.approx(10 / 14)
    assert result.micro_iou == pytest.approx(10 / (9 + 4 + 5))
    assert result.micro_iou_foreground == pytest.approx(4 / (4 + 5))
    assert result.micro_dice_foreground == pytest.approx(8 / (6 + 7))
    assert result.micro_precision_foreground == pytest.approx(4 / 7)
    assert result.micro_recall_foreground == pytest.approx(4 / 6)
    assert result.frequency_weighted_iou == pytest.approx((8 * 6 / 9 + 2 * 1 / 4 + 4 * 3 / 5) / 14)
    assert result.frequency_weighted_dice == pytest.approx(
        (8 * 12 / 15 + 2 * 2 / 5 + 4 * 6 / 8) / 14
    )


def random_ids() -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target (7, 11): class 3 is only predicted, 4 nowhere but where ignored."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (7, 11), generator=generator)
    noise = torch.randint(0, 4, (7, 11), generator=generator)
    prediction = torch.where(torch.rand((7, 11), generator=generator) < 0.5, target, noise)
    target.view(-1)[::6] = 255
    prediction[target == 255] = 4  # must not count
    return prediction, target


def test_means_micro_and_weighted_scores_equal_those_of_a_loop_over_pixels() -> None:
    prediction, target = random_ids()
    both = zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True)
    pairs = [(t, p) for t, p in both if t != 255]
    tp = [sum(t == p == k for t, p in pairs) for k in range(5)]
    fp = [sum(p == k != t for t, p in pairs) for k in range(5)]
    fn = [sum(t == k != p for t, p in pairs) for k in range(5)]
    iou = [tp[k] / (tp[k] + fp[k] + fn[k]) for k in range(4)]
    dice = [2 * tp[k] / (2 * tp[k] + fp[k] + fn[k]) for k in range(4)]
    result = scores(confusion_matrix(prediction, target, 5))
    assert math.isnan(result.iou[4])
    assert result.mean_iou == pytest.approx(sum(iou) / 4)
    assert result.mean_iou_foreground == pytest.approx(sum(iou[1:]) / 3)
    assert result.mean_dice_foreground == pytest.approx(sum(dice[1:]) / 3)
    assert result.mean_precision == pytest.approx(
        sum(tp[k] / (tp[k] + fp[k]) for k in range(4)) / 4
    )
    # Nothing of class 3 is to be found, but some was predicted.
    assert result.recall[3] == 0
    assert result.mean_recall == pytest.approx(sum(tp[k] / (tp[k] + fn[k]) for k in range(3)) / 4)
    assert result.micro_iou == pytest.approx(sum(tp) / (sum(tp) + sum(fp) + sum(fn)))
    assert result.micro_iou_foreground == pytest.approx(
        sum(tp[1:]) / (sum(tp[1:]) + sum(fp[1:]) + sum(fn[1:]))
    )
    weights = [(tp[k] + fn[k]) / len(pairs) for k in range(4)]
    assert result.frequency_weighted_iou == pytest.approx(
        sum(w * x for w, x in zip(weights, iou, strict=True))
    )


@pytest.mark.parametrize("never", [None, 0, 2])
def test_scores_equal_those_of_scikit_learn(never: int | None) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    prediction, target = random_ids()
    if never is not None:  # predicted
        prediction[prediction == never] = 1
    counted = target != 255
    y_true, y_pred = target[counted].numpy(), prediction[counted].numpy()
    result = scores(confusion_matrix(prediction, target, 5))
    for name, score in (
        ("iou", sklearn.jaccard_score),
        ("dice", sklearn.f1_score),
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
    ):
        # Without labels given, its classes are those in target or prediction: not class 4.
        each = score(y_true, y_pred, average=None, zero_division=0)
        assert getattr(result, name)[:4] == pytest.approx(each)
        macro = score(y_true, y_pred, average="macro", zero_division=0)
        assert getattr(result, f"mean_{name}") == pytest.approx(macro)
        assert getattr(result, f"mean_{name}_foreground") == pytest.approx(each[1:].mean())
        micro = score(y_true, y_pred, labels=[1, 2, 3], average="micro")
        assert getattr(result, f"micro_{name}_foreground") == pytest.approx(micro)
        micro = score(y_true, y_pred, labels=[0, 1, 2, 3], average="micro")
        same = result.micro_iou if name == "iou" else result.pixel_accuracy
        assert same == pytest.approx(micro)
    weighted = sklearn.jaccard_score(y_true, y_pred, average="weighted")
    assert result.frequency_weighted_iou == pytest.approx(weighted)
    weighted = sklearn.f1_score(y_true, y_pred, average="weighted")
    assert result.frequency_weighted_dice == pytest.approx(weighted)


def test_a_matrix_of_no_pixels_has_no_score_at_all() -> None:
    result = scores(torch.zeros(3, 3, dtype=torch.int64))
    for name, value in dataclasses.asdict(result).items():
        assert all(map(math.isnan, value)) if isinstance(value, list) else math.isnan(value), name


def test_without_foreground_there_are_scores_of_the_background_only() -> None:
    result = scores(torch.tensor([[9, 0], [0, 0]]))
    assert result.mean_iou == result.micro_iou == result.frequency_weighted_iou == 1
    assert math.isnan(result.mean_iou_foreground)
    assert math.isnan(result.micro_iou_foreground)


def test_scores_of_images_equal_those_of_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(2)
    matrices = torch.randint(0, 3, (6, 4, 4), generator=generator)
    matrices[0, 2], matrices[0, :, 2] = 0, 0
    matrices[1] = 0
    columns = score_values(matrices)
    assert set(columns) == {field.name for field in dataclasses.fields(Scores)}
    for name, column in columns.items():
        singles = [getattr(scores(matrix), name) for matrix in matrices]
        assert torch.tensor(singles).isnan().any()
        np.testing.assert_allclose(column.numpy(), singles)  # NaN equals NaN


def test_a_spread_leaves_out_missing_scores() -> None:
    # Three images of three classes; the second has a score in two of them, the third in none.
    nan = float("nan")
    values = torch.tensor([[0.5, 0.25, nan], [0.75, nan, nan], [0.25, 1.0, nan]])
    mean, std, without = spread(values)
    assert mean.tolist() == pytest.approx([0.5, 0.625, nan], nan_ok=True)
    expected = [statistics.stdev([0.5, 0.75, 0.25]), statistics.stdev([0.25, 1]), nan]
    assert std.tolist() == pytest.approx(expected, nan_ok=True)
    assert without.tolist() == [0, 1, 3]
    mean, std, without = spread(torch.tensor([nan, 0.5]))
    assert (float(mean), int(without)) == (0.5, 1)
    assert math.isnan(std)  # of one there is none


def test_images_have_a_mean_a_spread_and_a_number_without_a_score() -> None:
    # Class 1: IoU 2/4 and 1/5 in two images, in neither target nor prediction of the third.
    # Class 2: predicted in the first image, wrongly; nowhere else.
    columns = score_values(
        torch.tensor(
            [
                [[3, 1, 0], [0, 2, 1], [0, 0, 0]],
                [[4, 0, 0], [4, 1, 0], [0, 0, 0]],
                [[9, 0, 0], [0, 0, 0], [0, 0, 0]],
            ]
        )
    )
    mean, std, without = (part.tolist() for part in spread(columns["iou"]))
    assert mean == pytest.approx([(3 / 4 + 4 / 8 + 1) / 3, (2 / 4 + 1 / 5) / 2, 0])
    assert std[:2] == pytest.approx(
        [statistics.stdev([3 / 4, 4 / 8, 1]), statistics.stdev([2 / 4, 1 / 5])]
    )
    assert math.isnan(std[2])
    assert without == [0, 1, 2]
    for name in ("dice", "precision", "recall"):
        assert spread(columns[name])[2].tolist() == without
    singles = [(3 / 4 + 2 / 4 + 0) / 3, (4 / 8 + 1 / 5) / 2, 1]
    assert columns["mean_iou"].tolist() == pytest.approx(singles)
    mean, std, without = spread(columns["mean_iou"])
    assert float(mean) == pytest.approx(statistics.mean(singles))
    assert float(std) == pytest.approx(statistics.stdev(singles))
    assert without == 0
    assert spread(columns["mean_iou_foreground"])[2] == 1
