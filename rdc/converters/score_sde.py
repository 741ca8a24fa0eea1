"""score_sde's DDPM++ for CIFAR-10, continuous VP (Song et al., ICLR 2021): `checkpoint_8.pth`.

The deep network of `vp/cifar10_ddpmpp_deep_continuous`, which DiffPure uses, or the plain one. A
checkpoint has the last weights in `model`, and in `ema` their exponential average, which is what
the authors evaluate: a list in the order of the parameters. A plain state dictionary is read too.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rdc.converters.weights import (
    Published,
    Rule,
    attention,
    block_rules,
    blocks,
    convert_weights,
    layer,
    plain_tensors,
    require_names,
    skeleton,
    swap_halves,
)
from rdc.denoiser import DenoiserConfig
from rdc.networks.unet import UNet
from rdc.networks.unet_config import UNetConfig

LEVELS = (1, 2, 2, 2)
BLOCK = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "affine": "Dense_0", "norm2": "GroupNorm_1",
         "conv2": "Conv_1", "skip": "Conv_2"}  # fmt: skip
# A parameter's place in its module.
ORDER = [*BLOCK.values(), "NIN_0", "NIN_1", "NIN_2", "NIN_3"]


def convert(document: Any) -> Published:
    """A denoiser of a checkpoint or of a plain state dictionary."""
    checkpoint = isinstance(document, dict) and "ema" in document
    note = "These are the exponential averages."
    if not checkpoint:
        note = "The file is a plain state dictionary: whether of averages, it does not say."
    tensors = plain_tensors(document.get("model") if checkpoint else document)
    model = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    # Noise levels for the discrete process; the continuous one does not use them.
    model.pop("sigmas", None)
    net = skeleton(_network(model))
    rules = list(_rules(net))
    if checkpoint:
        model = _average(document["ema"], [*model], rules)
    return Published(
        "score_sde DDPM++",
        DenoiserConfig(net.config, preconditioning="vp-continuous"),
        convert_weights(rules, model, net),
        "apache-2.0",
        ("Its authors' repository is under the Apache license 2.0.", note),
    )


def _network(model: dict[str, Tensor]) -> UNetConfig:
    """The width and the depth of the file, in the one architecture."""
    first = model.get("all_modules.0.weight")
    residual = sum(re.fullmatch(r"all_modules\.\d+\.Conv_0\.weight", name) is not None
                   for name in model)  # fmt: skip
    # Each level has n blocks down and n + 1 up; to these come 2 in the middle, and one for each
    # change of resolution, down and up.
    others = len(LEVELS) + 2 + 2 * (len(LEVELS) - 1)
    depth, rest = divmod(residual - others, 2 * len(LEVELS))
    if first is None or first.ndim != 2 or depth < 1 or rest:
        raise ValueError(
            f"it has {residual} residual blocks in all_modules, which is not DDPM++ of "
            f"{len(LEVELS)} levels: the deep network has 76, the plain one 44"
        )
    width = first.shape[1]
    return UNetConfig(
        image_size=32, channels=3, num_classes=0, conditioning="none", width=width,
        width_multipliers=LEVELS, blocks_per_level=depth, attention_resolutions=(16,),
        attention_head_width=width * max(LEVELS), dropout=0.1, architecture="ddpmpp",
    )  # fmt: skip


def _average(ema: Any, names: list[str], rules: list[Rule]) -> dict[str, Tensor]:
    """The averages by name; they are in the order in which the network has its parameters."""
    order = sorted((source for rule in rules for source in rule.sources), key=_position)
    require_names(order, names)
    if names != order:
        raise ValueError("the names in 'model' are not in the order of DDPM++'s modules")
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or len(shadow) != len(names):
        found = len(shadow) if isinstance(shadow, list) else type(shadow).__name__
        raise ValueError(f"ema['shadow_params'] must list {len(names)} tensors, not {found}")
    return plain_tensors(dict(zip(names, shadow, strict=True)))


def _position(name: str) -> tuple[int, int, bool]:
    """Sort key of a parameter: its module, its layer in the module, and True for a bias."""
    _, module, *layers, kind = name.split(".")
    return int(module), ORDER.index(layers[0]) if layers else 0, kind in ("bias", "b")


def _rules(net: UNet) -> Iterator[Rule]:
    count = net.config.width // 2
    yield Rule("embed_noise.frequencies", (), lambda: _frequencies(count))
    # They have the sines first, we the cosines.
    yield Rule("embed_noise.mlp.0.weight", ("all_modules.0.weight",), swap_halves)
    yield Rule("embed_noise.mlp.0.bias", ("all_modules.0.bias",))
    yield from layer("embed_noise.mlp.2", "all_modules.1")
    yield from layer("stem", "all_modules.2")
    module = 3
    for target, block in blocks(net, "encoder") + blocks(net, "middle") + blocks(net, "decoder"):
        yield from block_rules(target, f"all_modules.{module}", block, BLOCK)
        module += 1
        if attention(block):
            yield from _attention(f"{target}.attention", f"all_modules.{module}")
            module += 1
    yield from layer("head.norm", f"all_modules.{module}")
    yield from layer("head.out", f"all_modules.{module + 1}")


def _frequencies(count: int) -> Tensor:
    """10000^(-k / (count - 1)), to the bit as the network was trained with them."""
    step = math.log(10_000) / (count - 1)
    return torch.exp(torch.arange(count, dtype=torch.float32) * -step)


def _attention(target: str, source: str) -> Iterator[Rule]:
    """Their matrices act from the right on the channels of a pixel."""
    yield from layer(f"{target}.norm", f"{source}.GroupNorm_0")
    weights = tuple(f"{source}.NIN_{index}.W" for index in range(3))
    biases = tuple(f"{source}.NIN_{index}.b" for index in range(3))
    yield Rule(f"{target}.qkv.weight", weights, lambda *qkv: _convolution(torch.cat(qkv, dim=1)))
    yield Rule(f"{target}.qkv.bias", biases, lambda *qkv: torch.cat(qkv))
    yield Rule(f"{target}.proj.weight", (f"{source}.NIN_3.W",), _convolution)
    yield Rule(f"{target}.proj.bias", (f"{source}.NIN_3.b",))


def _convolution(matrix: Tensor) -> Tensor:
    return matrix.T[:, :, None, None]
