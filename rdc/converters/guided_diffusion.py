"""guided-diffusion's ImageNet networks of 256 pixels (Dhariwal & Nichol, NeurIPS 2021).

`256x256_diffusion_uncond.pt`, which DiffPure uses, and the class-conditional
`256x256_diffusion.pt`: ordered dictionaries of tensors. The network predicts the noise and, in as
many channels again, the variance of a sampler's step, which a denoiser has no use for.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rdc.converters.weights import (
    Published,
    Rule,
    attention,
    attention_rows,
    block_rules,
    blocks,
    convert_weights,
    layer,
    plain_tensors,
    skeleton,
    with_no_label,
)
from rdc.denoiser import DenoiserConfig
from rdc.networks.blocks import Block
from rdc.networks.unet import UNet
from rdc.networks.unet_config import UNetConfig

NETWORK = UNetConfig(
    image_size=256, channels=3, num_classes=0, conditioning="none", width=256,
    width_multipliers=(1, 1, 2, 2, 4, 4), blocks_per_level=2, attention_resolutions=(32, 16, 8),
    attention_head_width=64, architecture="adm",
)  # fmt: skip


def convert(document: Any) -> Published:
    """A denoiser of such a state dictionary."""
    tensors = plain_tensors(document)
    network = NETWORK
    labels = tensors.get("label_emb.weight")
    if labels is not None and labels.ndim == 2:
        network = replace(network, num_classes=len(labels), conditioning="label")
    net = skeleton(network)
    name, notes = "guided-diffusion", [LICENSE, "Its prediction of a variance was left out."]
    if network.num_classes:
        name += ", class-conditional"
        notes.append("It was trained with every label given: without one it is untrained.")
    config = DenoiserConfig(network, preconditioning="vp-discrete")
    weights = convert_weights(_rules(net), tensors, net)
    return Published(name, config, weights, "mit", tuple(notes))


LICENSE = "Its authors' repository is under the MIT license."


def _rules(net: UNet) -> Iterator[Rule]:
    yield Rule("embed_noise.frequencies", (), lambda: _frequencies(net.config.width // 2))
    yield from layer("embed_noise.mlp.0", "time_embed.0")
    yield from layer("embed_noise.mlp.2", "time_embed.2")
    if net.config.num_classes:
        yield Rule("embed_label.weight", ("label_emb.weight",), with_no_label)
    yield from layer("stem", "input_blocks.0.0")
    for names in _blocks(net):
        yield from _block(*names)
    yield from layer("head.norm", "out.0")
    yield from layer("head.out", "out.2", lambda x: _half(x, net.config.channels))


def _frequencies(count: int) -> Tensor:
    """10000^(-k / count), to the bit as the network was trained with them."""
    return torch.exp(-math.log(10_000) * torch.arange(count, dtype=torch.float32) / count)


def _half(x: Tensor, channels: int) -> Tensor:
    """The part that predicts the noise, in front of the other half."""
    if len(x) != 2 * channels:
        raise ValueError(f"{len(x)} outputs are not noise and variance of {channels} channels")
    return x[:channels]


def _blocks(net: UNet) -> Iterator[tuple[str, str, str, Block]]:
    """Our name, the published names of the block and of its attention, and the block."""
    for index, (target, block) in enumerate(blocks(net, "encoder")):
        yield target, f"input_blocks.{index + 1}.0", f"input_blocks.{index + 1}.1", block
    for index, (target, block) in enumerate(blocks(net, "middle")):
        yield target, f"middle_block.{2 * index}", "middle_block.1", block
    stage, parts = -1, 0
    for target, block in blocks(net, "decoder"):
        # What doubles the resolution is the last part of the stage before it.
        if block.resample != "up":
            stage, parts = stage + 1, 0
        source = f"output_blocks.{stage}"
        yield target, f"{source}.{parts}", f"{source}.{parts + 1}", block
        parts += 2 if attention(block) else 1


def _block(target: str, source: str, attention_source: str, block: Block) -> Iterator[Rule]:
    names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "affine": "emb_layers.1",
             "norm2": "out_layers.0", "conv2": "out_layers.3",
             "skip": "skip_connection"}  # fmt: skip
    yield from block_rules(target, source, block, names)
    if found := attention(block):
        rows = attention_rows(found.heads, "e n c")
        target = f"{target}.attention"
        yield from layer(f"{target}.norm", f"{attention_source}.norm")
        for ours, theirs, make in (("qkv", "qkv", rows), ("proj", "proj_out", lambda x: x)):
            weight, bias = layer(f"{target}.{ours}", f"{attention_source}.{theirs}", make)
            # Convolutions over a line of pixels there, over the map here.
            yield replace(weight, make=lambda x, make=make: make(x)[..., None])
            yield bias
