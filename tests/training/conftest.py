"""What every training test shares."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """Accelerate fixes the precision once a process; each test is its own run."""
    AcceleratorState._reset_state(reset_partial_state=True)
