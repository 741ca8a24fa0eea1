"""The estimate of noise on images whose noise is known, and the warning of it."""

import pytest
import torch

from purification.noise_level import added_noise, noise_level


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_on_a_ramp_and_an_edge_is_found(sigma: float, channels: int) -> None:
    ramp = torch.linspace(0, 1, 64).expand(2, channels, 64, 64).clone()
    ramp[..., 32:, :] += 0.5
    assert noise_level(ramp).max() < 1e-6
    noise = torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        noise_level(ramp + sigma * noise), torch.full((2,), sigma), rtol=0.05, atol=0
    )


def test_it_is_the_formula() -> None:
    """One pixel of height 1 in the middle of 3x3: the mask's center, 4."""
    image = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    image[..., 1, 1] = 1
    assert noise_level(image).item() == pytest.approx((torch.pi / 2) ** 0.5 / 6 * 4)


def test_images_too_small_to_tell_have_none() -> None:
    assert noise_level(torch.rand(2, 3, 2, 5)).tolist() == [0, 0]


def test_only_visible_noise_is_reported() -> None:
    assert added_noise(0.02, 0.029) is None
    assert added_noise(0.3, 0.1) is None
    assert "0.055 after 0.017" in (added_noise(0.017, 0.055) or "")
