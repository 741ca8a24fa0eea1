"""Second derivatives of frozen networks against autograd's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rdc.second_order import constant_weights
from tests.support.denoisers import random_denoiser
from tests.support.oracle import some_images

DENOISER = random_denoiser()


def frozen(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for weights in module.double().requires_grad_(False).parameters():
        nn.init.normal_(weights, std=0.4)
    return module


def of(module: nn.Module):
    return lambda x: module(x).sin().flatten(1).sum(1)


def denoising(x: Tensor) -> Tensor:
    return (DENOISER.denoise(x, 0.5) - x).square().flatten(1).mean(1)


FUNCTIONS = {
    "unet": (denoising, DENOISER.image_shape),
    "conv": (of(frozen(nn.Conv2d(4, 6, 3, padding=1))), (4, 8, 8)),
    "strides and groups": (of(frozen(nn.Conv2d(4, 6, 3, 2, 1, groups=2))), (4, 8, 8)),
    "dilated": (of(frozen(nn.Conv2d(4, 6, 3, dilation=2, bias=False))), (4, 8, 8)),
    "same": (of(frozen(nn.Conv2d(4, 6, 3, padding="same"))), (4, 8, 8)),
    "group norm": (of(frozen(nn.GroupNorm(2, 4))), (4, 3, 5)),
    "plain group norm": (of(nn.GroupNorm(2, 4, affine=False)), (4, 3, 5)),
    "sequence": (of(nn.GroupNorm(2, 4).double().requires_grad_(False)), (4, 7)),
    "silu": (lambda x: F.silu(3 * x).prod(1).flatten(1).sum(1), (2, 3, 3)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives_are_autograds(name: str, channels_last: bool) -> None:
    function, shape = FUNCTIONS[name]
    x = 2 * some_images(3, shape) - 1
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    v = some_images(3, shape, seed=5) - 0.5

    def derivatives() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
        return first.detach(), torch.autograd.grad(first, leaf, v)[0]

    with sdpa_kernel(SDPBackend.MATH):
        expected = derivatives()
        with constant_weights():
            found = derivatives()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_weights_that_learn_get_their_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU()).double()
    x = some_images(2, (2, 6, 6)).requires_grad_()
    expected = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    with constant_weights():
        found = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("module", [nn.GroupNorm(1, 2).double(), nn.SiLU()])
def test_third_derivatives_are_refused(module: nn.Module) -> None:
    x = some_images(2, (2, 3, 3)).requires_grad_()
    module.requires_grad_(False)
    with constant_weights():
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(second.sum(), x)


def test_autocast_gets_autograds_own_derivatives() -> None:
    """Autocast rounds the inputs of each function, which functions of our own would not notice."""
    denoiser = random_denoiser(torch.float32)
    x = some_images(2, denoiser.image_shape, dtype=torch.float32)

    def second() -> Tensor:
        leaf = x.clone().requires_grad_()
        loss = (denoiser.denoise(leaf, 0.5) - leaf).square().sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(first, leaf, x)[0]

    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        expected = second()
        with constant_weights():
            assert torch.equal(second(), expected)


def test_arguments_may_have_their_names() -> None:
    x = some_images(2, (2, 3, 3)).requires_grad_()
    with constant_weights():
        assert torch.equal(F.silu(input=x), F.silu(x))
        assert torch.equal(F.group_norm(input=x, num_groups=1), F.group_norm(x, 1))
