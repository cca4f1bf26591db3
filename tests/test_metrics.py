import math

import pytest
import torch

from unet.metrics import confusion_matrix, scores


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


def test_a_class_never_predicted_has_iou_0_and_no_precision() -> None:
    result = scores(torch.tensor([[4, 0], [2, 0]]))
    assert result.iou[1] == 0
    assert result.recall[1] == 0
    assert math.isnan(result.precision[1])


def test_matrices_of_parts_add_up_to_that_of_the_whole() -> None:
    target, prediction = torch.randint(0, 3, (6, 9, 9)), torch.randint(0, 3, (6, 9, 9))
    parts = sum(confusion_matrix(p, t, 3) for p, t in zip(prediction, target, strict=True))
    assert torch.equal(parts, confusion_matrix(prediction, target, 3))
