"""What the method costs in U-Net evaluations."""

import pytest

from diffcli.config.file import override
from diffcli.config.settings import EvalConfig, InversionConfig, RunConfig, TrainConfig
from diffcli.core.costs import Cost, count_costs, evaluation_cost, validations


def costs(*overrides: str) -> dict[str, Cost]:
    return count_costs(override(RunConfig(), overrides), images=10)


def test_cost_of_the_published_recipe() -> None:
    """34 evaluations unconditionally, (k + 1) 34 with k prompted classes (method section 5)."""
    assert costs()["evaluated_image"] == (34, 34)
    assert costs()["training_sample"] == (34 + 34, 34 + 6 * 34)
    assert costs("train.loss.ipkl=false")["training_sample"] == (34, 34)
    assert costs("model.inversion.schedule=one")["training_sample"] == (2, 7)
    assert costs("model.inversion.negative_prompt=blur")["evaluated_image"] == (68, 68)
    assert costs("model.inversion.class_prompts={1: a, 2: a, 3: ''}")["training_sample"] == (68, 102)
    assert costs("model.decoder.features=latent")["total"] == (0, 0)


def test_cost_of_ways_to_evaluate() -> None:
    one = InversionConfig(schedule="one")
    assert evaluation_cost(EvalConfig(reference="prediction"), one) == (2, 7)
    assert evaluation_cost(EvalConfig(reference="labels"), one) == (1, 6)
    assert evaluation_cost(EvalConfig(flip=True, scales=(1.0, 0.5, 2.0)), one) == (6, 6)
    assert evaluation_cost(EvalConfig(mode="slide"), one) == (3, 3)  # 1024 wide: windows at 0, 384, 512


@pytest.mark.parametrize(
    ("iterations", "interval", "count"), [(10, None, 1), (10, 5, 2), (11, 5, 3), (3, 5, 1)]
)
def test_validations_are_at_every_interval_and_at_the_end(
    iterations: int, interval: int | None, count: int
) -> None:
    assert validations(TrainConfig(iterations=iterations, validate_interval=interval)) == count
