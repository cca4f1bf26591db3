import random

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from unet.config.schema import ScheduleConfig
from unet.training.schedule import learning_rate_factor, validations_without_gain


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    result = []
    for _ in range(steps):
        result.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(warmup_epochs=1), {0: 1 / 5, 1: 2 / 5, 3: 4 / 5, 4: 1, 6: 0.5, 8: 0}),
        (ScheduleConfig(warmup_epochs=0.5), {0: 1 / 3, 1: 2 / 3, 2: 1, 5: 0.5, 8: 0}),
        (ScheduleConfig(name="polynomial", power=2.0), {0: 1, 4: 0.25, 8: 0}),
        (ScheduleConfig(name="constant", warmup_epochs=0.25), {0: 0.5, 1: 1, 7: 1}),
        (ScheduleConfig(warmup_epochs=1.99), {0: 1 / 8, 6: 7 / 8, 7: 1}),
    ],
)
def test_warm_up_and_fall(config: ScheduleConfig, expected: dict[int, float]) -> None:
    for step, factor in expected.items():
        assert learning_rate_factor(config, step, 8, 4) == pytest.approx(factor)


def test_one_cycle_is_torchs() -> None:
    config = ScheduleConfig(name="one_cycle")
    theirs = OneCycleLR(optimizer(), max_lr=1.0, total_steps=50, cycle_momentum=False)
    for step, expected in enumerate(rates(theirs, 49)):
        assert learning_rate_factor(config, step, 50, 10) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_of_few_steps_is_a_schedule(steps: int) -> None:
    config = ScheduleConfig(name="one_cycle")
    assert all(0 < learning_rate_factor(config, i, steps, 1) <= 1 for i in range(steps))


def test_cosine_is_torchs() -> None:
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), T_max=20)
    for step, expected in enumerate(rates(theirs, 20)):
        assert learning_rate_factor(ScheduleConfig(), step, 20, 5) == pytest.approx(expected)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience: int) -> None:
    config = ScheduleConfig(name="plateau", patience=patience, factor=0.5)
    theirs = ReduceLROnPlateau(
        optimizer(), mode="max", factor=0.5, patience=patience, threshold=0, eps=0
    )
    rng = random.Random(patience)
    scores: list[float] = []
    for _ in range(40):
        scores.append(rng.choice([0.1, 0.2, 0.3, 0.4, 0.5]))
        theirs.step(scores[-1])
        ours = learning_rate_factor(config, 9, 10, 1, scores)
        assert ours == pytest.approx(theirs.get_last_lr()[0])
    assert ours < 0.1


def test_validations_without_gain_are_counted() -> None:
    assert validations_without_gain([]) == 0
    assert validations_without_gain([0.3]) == 0
    assert validations_without_gain([0.3, 0.5, 0.4, 0.5]) == 2
