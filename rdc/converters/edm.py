"""NVIDIA's EDM networks (Karras et al., NeurIPS 2022): pickles of its own classes.

CIFAR-10, FFHQ and AFHQ in DDPM++ ("vp") and NCSN++ ("ve"), ImageNet-64 in ADM. The pickle holds the
exponential average `ema`: an EDMPrecond around a SongUNet or DhariwalUNet, each with the arguments
that it was made with. EDM's baselines have a VPPrecond or a VEPrecond in its place. A plain state
dictionary of an EDMPrecond, as RDC's code saves it, is read too.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from rdc import vp
from rdc.converters import edm_state
from rdc.converters.unpickle import Node
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
    swap_halves,
    with_no_label,
)
from rdc.denoiser import DenoiserConfig, Preconditioning
from rdc.networks.blocks import STYLES, Block, low_pass
from rdc.networks.unet import UNet
from rdc.networks.unet_config import Architecture, UNetConfig

REQUIRED = -1
# What the classes take, and their defaults in EDM's code.
COMMON: dict[str, Any] = {
    "img_resolution": REQUIRED, "in_channels": REQUIRED, "out_channels": REQUIRED, "label_dim": 0,
    "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.1, "label_dropout": 0.0,
}  # fmt: skip
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SongUNet": COMMON | {
        "model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4,
        "attn_resolutions": (16,), "embedding_type": "positional", "channel_mult_noise": 1,
        "encoder_type": "standard", "decoder_type": "standard", "resample_filter": (1, 1),
    },
    "DhariwalUNet": COMMON | {
        "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}  # fmt: skip


def convert(document: Any) -> Published:
    """A denoiser of the content of one of EDM's pickles, as `unpickle.read` gives it."""
    if isinstance(document, dict) and any(isinstance(v, Tensor) for v in document.values()):
        tensors = edm_state.unprefixed(document)
        return _published(*edm_state.inferred(tensors), tensors, notes=[LICENSE, PLAIN])
    outer = document.get("ema") if isinstance(document, dict) else None
    known = isinstance(outer, Node) and outer.class_name in PRECONDITIONINGS
    if not isinstance(outer, Node) or not known:
        found = outer.class_name if isinstance(outer, Node) else type(outer).__name__
        raise ValueError(
            f"its entry 'ema' must be an {', '.join(PRECONDITIONINGS)}, not a {found}"
            + (IDDPM if found == "iDDPMPrecond" else "")
        )
    inner, precondition = outer.child("model"), _made_with(outer)
    for name, value in VP_PROCESS.items():
        if precondition.get(name, value) != value:
            raise ValueError(f"its {name}={precondition[name]!r} is not that of EDM, {value}")
    notes = [LICENSE] + ([NO_HALF] if precondition.get("use_fp16") else [])
    return _published(
        inner.class_name, _arguments(inner), plain_tensors(inner.tensors()), notes=notes,
        sigma_data=precondition.get("sigma_data", 0.5),
        preconditioning=PRECONDITIONINGS[outer.class_name],
    )  # fmt: skip


def _published(
    kind: str,
    arguments: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    notes: list[str],
    sigma_data: Any = 0.5,
    preconditioning: Preconditioning = "edm",
) -> Published:
    if not _fits(sigma_data, 0.5):
        raise ValueError(f"its sigma_data={sigma_data!r} is not a number")
    network = _network(kind, arguments)
    _drop_filters(tensors, STYLES[network.architecture].filter)
    if tensors.pop("map_augment.weight", None) is not None:
        notes.append(NO_AUGMENTATION)
    if network.num_classes and not arguments["label_dropout"]:
        notes.append(NO_NULL_LABEL)
    net = skeleton(network)
    weights = convert_weights(_rules(net), tensors, net)
    config = DenoiserConfig(network, sigma_data, preconditioning=preconditioning)
    return Published(f"EDM {kind}", config, weights, "cc-by-nc-sa-4.0", tuple(notes))


# EDM's classes, and what they are here.
PRECONDITIONINGS: dict[str, Preconditioning] = {
    "EDMPrecond": "edm", "VPPrecond": "vp-continuous", "VEPrecond": "ve",
}  # fmt: skip
VP_PROCESS = {"beta_d": vp.BETA_MAX - vp.BETA_MIN, "beta_min": vp.BETA_MIN, "M": vp.TIMES}
IDDPM = (
    ", whose noise levels are those of a cosine schedule, which rdc does not have; EDM's own "
    "networks for the same data convert"
)
PLAIN = (
    "The file is a plain state dictionary, which names neither its preconditioning nor its data: "
    "it is read as an EDMPrecond with sigma_data=0.5, as RDC's code does."
)


LICENSE = (
    "NVIDIA's EDM weights are CC BY-NC-SA 4.0: no commercial use, and what is made of them, this "
    "file among it, stays under the same license."
)
NO_AUGMENTATION = "The weights that tell the network about augmentation were left out."
NO_NULL_LABEL = (
    "It was trained with every label given: the unconditional estimate, for the all-zero label, is "
    "untrained."
)
NO_HALF = "EDM runs it in half precision; here it runs in the precision of the images."


def _arguments(node: Node) -> dict[str, Any]:
    """Arguments that the network was constructed with, lists as tuples."""
    if node.class_name not in ARGUMENTS:
        raise ValueError(f"its network is a {node.class_name}, not one of {list(ARGUMENTS)}")
    expected = ARGUMENTS[node.class_name]
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in _made_with(node).items()
    }
    found = {name: value for name, value in expected.items() if value != REQUIRED} | given
    odd = [name for name, value in found.items() if not _fits(value, expected.get(name))]
    if odd or set(found) != set(expected):
        odd += sorted(set(expected) - set(found))
        raise ValueError(f"its {node.class_name} has other arguments than EDM's: {odd}")
    return found


def _made_with(node: Node) -> dict[str, Any]:
    arguments = node.attributes.get("_init_kwargs")
    if not isinstance(arguments, dict) or node.attributes.get("_init_args"):
        raise ValueError(f"its {node.class_name} does not say what it was made with")
    return arguments


def _fits(value: Any, example: Any) -> bool:
    """True if the value has the type of the example; an integer passes as a float."""
    if isinstance(example, tuple):
        return isinstance(value, tuple) and {type(item) for item in value} <= {int}
    return type(value) in (int, float) if type(example) is float else type(value) is type(example)


def _network(kind: str, arguments: dict[str, Any]) -> UNetConfig:
    architecture = _architecture(kind, arguments)
    width, multipliers = arguments["model_channels"], arguments["channel_mult"]
    channels, classes = arguments["in_channels"], arguments["label_dim"]
    adm = architecture == "adm"
    if arguments["channel_mult_emb"] != 4 or arguments["out_channels"] != channels:
        raise ValueError(
            "it has an embedding of other than 4 widths, or other channels out than in"
        )
    if adm and multipliers[:1] != (1,):
        raise ValueError(f"channel_mult={multipliers} of a DhariwalUNet must start with 1")
    return UNetConfig(
        image_size=arguments["img_resolution"],
        channels=channels,
        num_classes=classes,
        conditioning="label" if classes else "none",
        width=width,
        width_multipliers=multipliers,
        blocks_per_level=arguments["num_blocks"],
        attention_resolutions=arguments["attn_resolutions"],
        # One head for a SongUNet, whatever the width.
        attention_head_width=64 if adm else width * max(multipliers, default=1),
        dropout=arguments["dropout"],
        architecture=architecture,
    )


def _architecture(kind: str, arguments: dict[str, Any]) -> Architecture:
    if kind == "DhariwalUNet":
        return "adm"
    found = tuple(arguments[name] for name in edm_state.SONG_NAMES)
    for architecture, values in edm_state.SONG_TYPES.items():
        if found == values:
            return architecture
    raise ValueError(f"its SongUNet is neither DDPM++ nor NCSN++: {found}")


def _drop_filters(tensors: dict[str, Tensor], taps: tuple[int, ...]) -> None:
    """Take out the buffers with the resampling filter, which our network knows."""
    for name in [name for name in tensors if name.endswith(".resample_filter")]:
        found = tensors.pop(name).flatten()
        expected = low_pass(taps).to(found).flatten()
        if found.shape != expected.shape or not torch.allclose(found, expected):
            raise ValueError(f"{name} is another filter than that of its architecture, {taps}")


def _rules(net: UNet) -> Iterator[Rule]:
    size = net.config.image_size
    song = net.style.labels_first
    yield from layer("stem", f"enc.{size}x{size}_conv")
    yield from _embedding(net)
    for target, source, block in _blocks(net):
        yield from _block(target, source, block)
    for level in range(len(net.pyramid)):
        source = f"enc.{size >> level + 1}x{size >> level + 1}_aux_residual"
        yield from layer(f"pyramid.{level}.conv", source)
    yield from layer("head.norm", f"dec.{size}x{size}_aux_norm" if song else "out_norm")
    yield from layer("head.out", f"dec.{size}x{size}_aux_conv" if song else "out_conv")


def _embedding(net: UNet) -> Iterator[Rule]:
    song = net.style.labels_first
    if net.config.architecture == "ncsnpp":
        # EDM multiplies by 2 pi on the way.
        yield Rule("embed_noise.frequencies", ("map_noise.freqs",), lambda x: 2 * torch.pi * x)
    else:
        count = net.embed_noise.frequencies.numel()
        yield Rule("embed_noise.frequencies", (), partial(net.style.frequencies, count))
    weight, bias = layer("embed_noise.mlp.0", "map_layer0")
    # A SongUNet has the sines first, we the cosines.
    yield replace(weight, make=swap_halves) if song else weight
    yield bias
    yield from layer("embed_noise.mlp.2", "map_layer1")
    if net.config.num_classes:
        sources = ("map_label.weight", "map_label.bias") if song else ("map_label.weight",)
        make = _song_labels if song else lambda weight: with_no_label(weight.T)
        yield Rule("embed_label.weight", sources, make)


def _song_labels(weight: Tensor, bias: Tensor) -> Tensor:
    """The linear layer of sqrt(K) times the one-hot label, and of no label, as a table."""
    return swap_halves(with_no_label(weight.T * sqrt(weight.shape[1])) + bias)


def _blocks(net: UNet) -> Iterator[tuple[str, str, Block]]:
    """Our name, EDM's name and the block, from the image to the middle and back."""
    count = net.config.blocks_per_level
    sizes = [net.config.image_size >> level for level in range(len(net.config.width_multipliers))]
    encoder, decoder = [], []
    for size in sizes:
        down = [f"enc.{size}x{size}_down"] if size != sizes[0] else []
        encoder += down + [f"enc.{size}x{size}_block{index}" for index in range(count)]
    for size in reversed(sizes):
        up = [f"dec.{size}x{size}_up"] if size != sizes[-1] else []
        decoder += up + [f"dec.{size}x{size}_block{index}" for index in range(count + 1)]
    middle = [f"dec.{sizes[-1]}x{sizes[-1]}_in{index}" for index in range(2)]
    ours = blocks(net, "encoder") + blocks(net, "middle") + blocks(net, "decoder")
    for source, (target, block) in zip(encoder + middle + decoder, ours, strict=True):
        yield target, source, block


def _block(target: str, source: str, block: Block) -> Iterator[Rule]:
    names = {"norm1": "norm0", "conv1": "conv0", "affine": "affine", "norm2": "norm1",
             "conv2": "conv1", "skip": "skip"}  # fmt: skip
    yield from block_rules(target, source, block, names)
    if found := attention(block):
        rows = attention_rows(found.heads, "e c n")
        yield from layer(f"{target}.attention.norm", f"{source}.norm2")
        yield from layer(f"{target}.attention.qkv", f"{source}.qkv", rows)
        yield from layer(f"{target}.attention.proj", f"{source}.proj")
