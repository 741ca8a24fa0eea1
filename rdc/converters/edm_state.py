"""Plain state dictionaries of EDM's networks: the arguments of the network, by names and shapes.

RDC's code saves such files (Chen et al., ICML 2024): an EDMPrecond's tensors without the arguments
that EDM's own pickles keep.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rdc.converters.weights import plain_tensors
from rdc.networks.unet_config import Architecture

SONG_NAMES = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type",
              "resample_filter")  # fmt: skip
"""Arguments that tell the kinds of a SongUNet apart."""
SONG_TYPES: dict[Architecture, tuple[Any, ...]] = {
    "ddpmpp": ("positional", 1, "standard", "standard", (1, 1)),
    "ncsnpp": ("fourier", 2, "residual", "standard", (1, 3, 3, 1)),
}


def unprefixed(document: Any) -> dict[str, Tensor]:
    """The tensors of the network inside an EDMPrecond, which is its module "model"."""
    return {re.sub(r"^(module\.)?model\.", "", k): v for k, v in plain_tensors(document).items()}


def inferred(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Class of EDM's network, and arguments as `edm._arguments` gives them.

    Raises:
        ValueError: a layer that tells them is missing or has another number of dimensions.
    """
    sizes = sorted(
        {int(size) for name in tensors for size in re.findall(r"^enc\.(\d{1,4})x", name)}
    )
    if not sizes or len(sizes) > 16 or sizes != [sizes[0] << level for level in range(len(sizes))]:
        raise ValueError(
            "it is a state dictionary, but not of an EDM network: the layers enc.<size>x<size>_... "
            f"have the sizes {sizes[:16]}; it starts with {', '.join([*tensors][:3])}"
        )
    sizes.reverse()
    stem = f"enc.{sizes[0]}x{sizes[0]}"
    width, channels = _shape(tensors, f"{stem}_conv.weight", 4)[:2]
    firsts = [_shape(tensors, f"enc.{s}x{s}_block0.conv0.weight", 4)[0] for s in sizes]
    if not width or any(first % width for first in firsts):
        raise ValueError(
            f"its widths {firsts} are not multiples of {width}, that of its first layer"
        )
    indices = [
        int(index) for n in tensors for index in re.findall(rf"^{stem}_block(\d{{1,9}})\.", n)
    ]
    arguments = {
        "img_resolution": sizes[0], "in_channels": channels, "out_channels": channels,
        "label_dim": _inputs(tensors, "map_label.weight"), "label_dropout": 0.0, "dropout": 0.1,
        "augment_dim": _inputs(tensors, "map_augment.weight"), "channel_mult_emb": 4,
        "model_channels": width, "channel_mult": tuple(first // width for first in firsts),
        "num_blocks": max(indices) + 1,
        "attn_resolutions": tuple(s for s in sizes if f"enc.{s}x{s}_block0.qkv.weight" in tensors),
    }  # fmt: skip
    if "out_norm.weight" in tensors:
        return "DhariwalUNet", arguments
    kind = "ncsnpp" if "map_noise.freqs" in tensors else "ddpmpp"
    return "SongUNet", arguments | dict(zip(SONG_NAMES, SONG_TYPES[kind], strict=True))


def _inputs(tensors: Mapping[str, Tensor], name: str) -> int:
    """Inputs of a linear layer, 0 if there is none."""
    return _shape(tensors, name, 2)[1] if name in tensors else 0


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != dimensions:
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        raise ValueError(f"{name} must have {dimensions} dimensions, but is {found}")
    return tuple(tensors[name].shape)
