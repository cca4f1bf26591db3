import random
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from unet.training.schedule import learning_rate_multiplier, validations_without_gain


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
        ({"warmup_epochs": 1}, {0: 1 / 5, 1: 2 / 5, 3: 4 / 5, 4: 1, 6: 0.5, 8: 0}),
        ({"warmup_epochs": 0.5}, {0: 1 / 3, 1: 2 / 3, 2: 1, 5: 0.5, 8: 0}),
        ({"name": "polynomial", "power": 2.0}, {0: 1, 4: 0.25, 8: 0}),
        ({"name": "constant", "warmup_epochs": 0.25}, {0: 0.5, 1: 1, 7: 1}),
        ({"warmup_epochs": 1.99}, {0: 1 / 8, 6: 7 / 8, 7: 1}),
    ],
)
def test_warm_up_and_fall(config: dict[str, Any], expected: dict[int, float]) -> None:
    for step, factor in expected.items():
        assert learning_rate_multiplier(
            step, num_steps=8, steps_per_epoch=4, **config
        ) == pytest.approx(factor)


def test_one_cycle_is_torchs() -> None:
    theirs = OneCycleLR(optimizer(), max_lr=1.0, total_steps=50, cycle_momentum=False)
    for step, expected in enumerate(rates(theirs, 49)):
        assert learning_rate_multiplier(
            step, num_steps=50, steps_per_epoch=10, name="one_cycle"
        ) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_of_few_steps_is_a_schedule(steps: int) -> None:
    assert all(
        0 < learning_rate_multiplier(i, num_steps=steps, steps_per_epoch=1, name="one_cycle") <= 1
        for i in range(steps)
    )


def test_cosine_is_torchs() -> None:
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), T_max=20)
    for step, expected in enumerate(rates(theirs, 20)):
        assert learning_rate_multiplier(step, num_steps=20, steps_per_epoch=5) == pytest.approx(
            expected
        )


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience: int) -> None:
    theirs = ReduceLROnPlateau(
        optimizer(), mode="max", factor=0.5, patience=patience, threshold=0, eps=0
    )
    rng = random.Random(patience)
    scores: list[float] = []
    for _ in range(40):
        scores.append(rng.choice([0.1, 0.2, 0.3, 0.4, 0.5]))
        theirs.step(scores[-1])
        ours = learning_rate_multiplier(
            9,
            num_steps=10,
            steps_per_epoch=1,
            scores=scores,
            name="plateau",
            patience=patience,
            factor=0.5,
        )
        assert ours == pytest.approx(theirs.get_last_lr()[0])
    assert ours < 0.1


def test_validations_without_gain_are_counted() -> None:
    assert validations_without_gain([]) == 0
    assert validations_without_gain([0.3]) == 0
    assert validations_without_gain([0.3, 0.5, 0.4, 0.5]) == 2
