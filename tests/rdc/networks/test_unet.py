"""The UNet: shapes over its whole range, independent heads, second derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc import UNet, UNetConfig
from tests.support.denoisers import TINY


def config(**changes) -> UNetConfig:
    return UNetConfig(**{**TINY.__dict__, **changes})


def network(**changes) -> UNet:
    """A tiny float64 network whose zero-started layers are randomized too."""
    torch.manual_seed(0)
    net = UNet(config(**changes)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([8, 16, 24, 32]),
    st.sampled_from([1, 3]),
    st.integers(2, 5),
    st.sampled_from(["label", "multihead"]),
    st.sampled_from([(1,), (1, 2), (2, 1, 1)]),
    st.integers(1, 2),
    st.integers(0, 2),
)
def test_shapes(size, channels, classes, conditioning, multipliers, blocks, head_blocks) -> None:
    net = UNet(
        config(
            image_size=size, channels=channels, num_classes=classes, conditioning=conditioning,
            width_multipliers=multipliers, blocks_per_level=blocks, head_blocks=head_blocks,
            attention_resolutions=(8,),
        )
    )  # fmt: skip
    x, c_noise = torch.randn(2, channels, size, size), torch.zeros(2)
    expected = (2, channels, size, size)
    if conditioning == "label":
        assert net(x, c_noise, labels=torch.tensor([0, classes - 1])).shape == expected
        assert net(x, c_noise).shape == expected
    else:
        assert net(x, c_noise).shape == (2, classes + 1, *expected[1:])
        assert net(x, c_noise, outputs="classes").shape == (2, classes, *expected[1:])
        assert net(x, c_noise, outputs="unconditional").shape == expected


@pytest.mark.parametrize("conditioning", ["label", "multihead", "none"])
@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
def test_published_architectures(architecture: str, conditioning: str) -> None:
    """They train like ours: every weight has a gradient, and what starts at zero does."""
    classes = 0 if conditioning == "none" else 3
    changes = {"architecture": architecture, "conditioning": conditioning, "num_classes": classes}
    assert not UNet(config(**changes))(torch.randn(2, 1, 8, 8), torch.zeros(2)).any()
    net = network(**changes, augment_features=2)
    x, c_noise = torch.randn(2, 1, 8, 8).double(), torch.tensor([-1.0, 0.5]).double()
    labels = torch.tensor([0, 2]) if conditioning == "label" else None
    out = net(x, c_noise, labels=labels, augment=torch.ones(2, 2).double())
    assert out.shape == ((2, 4, 1, 8, 8) if conditioning == "multihead" else (2, 1, 8, 8))
    out.square().sum().backward()
    assert all(weights.grad is not None for weights in net.parameters())
    assert "embed_noise.frequencies" in net.state_dict()


def test_largest_images() -> None:
    net = UNet(config(image_size=256, channels=3, width_multipliers=(1, 1, 1, 1, 1, 1)))
    assert net(torch.randn(1, 3, 256, 256), torch.zeros(1)).shape == (1, 4, 3, 256, 256)


def test_partial_outputs_are_parts_of_all() -> None:
    net = network()
    x, c_noise = torch.randn(2, 1, 8, 8).double(), torch.zeros(2).double()
    both = net(x, c_noise)
    torch.testing.assert_close(net(x, c_noise, outputs="classes"), both[:, :-1])
    torch.testing.assert_close(net(x, c_noise, outputs="unconditional"), both[:, -1])


@pytest.mark.parametrize("head_blocks", [0, 1, 2])
def test_heads_are_independent(head_blocks: int) -> None:
    """The weights of head k move output k and no other: grouped layers do not mix heads."""
    net = network(head_blocks=head_blocks)
    x, c_noise = torch.randn(1, 1, 8, 8).double(), torch.zeros(1).double()
    before = net(x, c_noise, outputs="classes")
    with torch.no_grad():
        for name, parameter in net.class_heads.named_parameters():
            if head_blocks == 0 and name.startswith("norm"):
                continue  # without depth the normalization is the trunk's last, shared one
            if name.startswith("stem") or "affine" in name or len(parameter) % 3:
                continue
            parameter[: len(parameter) // 3] += 0.5
    changed = (net(x, c_noise, outputs="classes") != before).flatten(2).any(2)[0]
    assert changed.tolist() == [True, False, False]


def test_labels_and_noise_levels_matter() -> None:
    net = network(conditioning="label")
    x, c_noise = torch.randn(1, 1, 8, 8).double(), torch.zeros(1).double()
    outputs = [net(x, c_noise, labels=torch.tensor([y])) for y in range(3)]
    outputs += [net(x, c_noise), net(x, c_noise + 0.3)]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert not torch.allclose(one, other)


def test_no_label_is_the_extra_row() -> None:
    net = network(conditioning="label")
    x, c_noise = torch.randn(2, 1, 8, 8).double(), torch.zeros(2).double()
    assert torch.equal(net(x, c_noise), net(x, c_noise, labels=torch.tensor([3, 3])))


def test_starts_at_zero() -> None:
    """Zero-started heads: the untrained network adds nothing to the preconditioned skip."""
    net = UNet(config())
    assert not net(torch.randn(2, 1, 8, 8), torch.zeros(2)).any()


@pytest.mark.parametrize("size", [8, 16])
def test_second_derivatives_through_attention(size: int) -> None:
    """gradgradcheck in float64, with the attention kernel that has a second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    net = network(image_size=size, attention_resolutions=(size,), width_multipliers=(1,))
    c_noise = torch.zeros(1).double()

    def energy(x: torch.Tensor) -> torch.Tensor:
        return net(x, c_noise).square().mean()

    with sdpa_kernel(SDPBackend.MATH):
        x = torch.randn(1, 1, size, size).double().requires_grad_()
        assert torch.autograd.gradgradcheck(energy, (x,), fast_mode=True)


def test_channels_last_gives_the_same() -> None:
    net = network().float()
    x, c_noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    plain = net(x, c_noise)
    last = net.to(memory_format=torch.channels_last)(
        x.to(memory_format=torch.channels_last), c_noise
    )
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [{"image_size": 4}, {"image_size": 257}, {"image_size": 9}, {"channels": 2}, {"num_classes": 1},
     {"conditioning": "none"}, {"width": 12}, {"width_multipliers": ()}, {"blocks_per_level": 0},
     {"head_blocks": -1}, {"dropout": 1.0}, {"attention_head_width": 0}, {"head_width": 0},
     {"architecture": "vit"}],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"UNetConfig: .*{next(iter(bad))}"):
        config(**bad)
