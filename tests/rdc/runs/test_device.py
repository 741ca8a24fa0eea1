"""Programs take a GPU where there is one that can do what they need."""

import pytest
import torch

from rdc.runs.device import default_device


@pytest.mark.parametrize(
    ("found", "taken"), [(None, "cpu"), ("mps", "cpu"), ("cuda", "cuda"), ("xpu", "xpu")]
)
def test_default_device(monkeypatch, found: str | None, taken: str) -> None:
    """Apple's has no float64."""

    def current_accelerator(check_available: bool = False) -> torch.device | None:
        assert check_available
        return None if found is None else torch.device(found)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    assert default_device() == torch.device(taken)
