"""Conversion of a published file's tensors to our network's; each tensor is used exactly once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from rdc.config import cut, short, some
from rdc.denoiser import DenoiserConfig
from rdc.hub import building
from rdc.networks.blocks import Attention, Block
from rdc.networks.image_classifier import ImageClassifierConfig
from rdc.networks.unet import UNet
from rdc.networks.unet_config import UNetConfig


@dataclass(frozen=True)
class Rule:
    """Our tensor `target` is `make` of the published tensors `sources`."""

    target: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Published:
    """A published network in our terms.

    `weights` have our names and the file's precision. `license` is a Hugging Face identifier;
    `notes` are sentences for the card, the license first.
    """

    name: str
    config: DenoiserConfig | ImageClassifierConfig
    weights: dict[str, Tensor]
    license: str
    notes: tuple[str, ...]


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PARTS = ("weight", "bias")


def layer(target: str, source: str, make: Callable[..., Tensor] | None = None) -> list[Rule]:
    """Weight and bias of a layer; `make` changes both."""
    changes = {"make": make} if make else {}
    return [Rule(f"{target}.{part}", (f"{source}.{part}",), **changes) for part in PARTS]


def block_rules(target: str, source: str, block: Block, names: Mapping[str, str]) -> Iterator[Rule]:
    """Rules of a residual block without its attention; `names`: ours to the published ones."""
    for ours, theirs in names.items():
        if not isinstance(getattr(block, ours), nn.Identity):
            yield from layer(f"{target}.{ours}", f"{source}.{theirs}")


def blocks(net: UNet, part: Literal["encoder", "middle", "decoder"]) -> list[tuple[str, Block]]:
    """The residual blocks of a part of the network, by name."""
    children = net.get_submodule(part).named_children()
    return [(f"{part}.{name}", cast(Block, block)) for name, block in children]


def attention(block: Block) -> Attention | None:
    """The block's attention, where it has one."""
    return block.attention if isinstance(block.attention, Attention) else None


def skeleton(config: UNetConfig) -> UNet:
    """The network without memory for its weights: its structure and shapes."""
    return building.skeleton(lambda: UNet(config), "the file")


def convert_weights(
    rules: Iterable[Rule], tensors: Mapping[str, Tensor], network: nn.Module
) -> dict[str, Tensor]:
    """Weights of a `Denoiser` or `ImageClassifier` with this network, made by the rules.

    Raises ValueError where `tensors` are not those that the rules ask for, do not have the shapes
    of `network`, are not finite, or are of types that float32 does not hold exactly.
    """
    rules, own = list(rules), network.state_dict()
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    require_names((source for rule in rules for source in rule.sources), tensors)
    _require_types(rules, tensors, own)
    made: dict[str, Tensor] = {}
    wrong, broken = [], []
    for rule in rules:
        value = _made(rule, tensors)
        if value is None or tuple(value.shape) != shapes[rule.target]:
            given = [f"{name} {tuple(tensors[name].shape)}" for name in rule.sources]
            wrong.append(f"{' and '.join(given)} for {shapes[rule.target]}")
        elif not value.isfinite().all():
            broken += rule.sources
        else:
            made[f"network.{rule.target}"] = value.detach()
    _refuse(wrongly_shaped=wrong, not_finite=broken)
    assert {f"network.{name}" for name in shapes} == set(made)
    return made


def require_names(expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise ValueError unless both are the same names, in any order."""
    asked, given = set(expected), set(found)
    _refuse(missing=sorted(asked - given), unexpected=sorted(given - asked))


def _require_types(
    rules: Iterable[Rule], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless float32 holds the sources exactly, or they have the target's type."""
    odd, inexact = [], []
    for rule in rules:
        target = own[rule.target].dtype
        for name in rule.sources:
            tensor = tensors[name]
            if tensor.dtype not in (FLOATS if target.is_floating_point else (target,)):
                odd.append(f"{name} {tensor.dtype} for {target}")
            elif tensor.dtype == torch.float64 and not _fits_float32(tensor):
                inexact.append(name)
    _refuse(of_another_type=odd, of_float64_beyond_float32=inexact)


def _fits_float32(tensor: Tensor) -> bool:
    return torch.equal(tensor.float().double().nan_to_num(), tensor.nan_to_num())


def _made(rule: Rule, tensors: Mapping[str, Tensor]) -> Tensor | None:
    try:
        return rule.make(*(tensors[name] for name in rule.sources))
    except Exception:  # of einops or torch: the sources do not have the dimensions
        return None


def _refuse(**found: list[str]) -> None:
    parts = [f"{kind.replace('_', ' ')}: {some(names)}" for kind, names in found.items() if names]
    if parts:
        raise ValueError("its tensors are not those of this network; " + "; ".join(parts))


def plain_tensors(values: Any) -> dict[str, Tensor]:
    """A state dictionary, where `values` is one: names to ordinary tensors."""
    if not isinstance(values, dict) or not values:
        raise ValueError(f"a {type(values).__name__} stands in place of a state dictionary")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{short(name)} is a {type(value).__name__}, not a tensor")
        plain = value.layout == torch.strided and not (value.is_nested or value.is_quantized)
        if not plain or value.device.type != "cpu":
            kind = "nested" if value.is_nested else value.layout
            raise ValueError(f"{cut(name)} is not an ordinary tensor but {kind} on {value.device}")
    return dict(values)


def swap_halves(x: Tensor) -> Tensor:
    """(N, [sines, cosines]) as (N, [cosines, sines])."""
    return torch.cat(x.chunk(2, dim=1)[::-1], dim=1)


def with_no_label(table: Tensor) -> Tensor:
    """The embeddings of labels (K, N) with one of zeros for no label (K + 1, N)."""
    return torch.cat([table, torch.zeros_like(table[:1])])


def attention_rows(heads: int, published: str) -> Callable[[Tensor], Tensor]:
    """Queries, keys and values (n) of heads (e) with channels (c): ours are in the order n e c."""

    def make(x: Tensor) -> Tensor:
        return rearrange(x, f"({published}) ... -> (n e c) ...", n=3, e=heads)

    return make
