"""EDM's networks in their own terms: an oracle, written apart from the library.

From the description in Karras et al. 2022 (table 1, appendix F) and in Song et al. 2021 and
Dhariwal & Nichol 2021, with the parameter names of the published files. Attention is written out,
resampling is by inserted zeros and by sums, sines and cosines are in the published order.
"""

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE = "open('executed', 'w').close()\n"


class Persistent:
    """Pickles as EDM's classes do: with their source code, which a reader is to execute."""

    def __init__(self, **arguments: Any) -> None:
        self._init_args: tuple = ()
        self._init_kwargs = arguments

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE,
                "class_name": type(self).__name__, "state": self.__dict__}  # fmt: skip
        reconstruct = sys.modules["torch_utils.persistence"].__dict__["_reconstruct_persistent_obj"]
        return reconstruct, (meta,)


class Module(Persistent, nn.Module):
    def __init__(self, **arguments: Any) -> None:
        nn.Module.__init__(self)
        Persistent.__init__(self, **arguments)


class Linear(Module):
    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(in_features=inputs, out_features=outputs, bias=bias)
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 4) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Conv(Module):
    """A convolution, a change of resolution, or first the one and then the other.

    `fused`: the convolution comes first, over a border as wide as the filter needs.
    """

    weight: Any
    bias: Any
    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        taps: tuple[int, ...] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__(in_channels=inputs, out_channels=outputs, kernel=kernel)
        self.up, self.down, self.fused = up, down, fused
        scale = (inputs * kernel**2) ** -0.5 if kernel else 0
        weight = torch.randn(outputs, inputs, kernel, kernel) * scale if kernel else None
        self.weight = nn.Parameter(weight) if weight is not None else None
        self.bias = nn.Parameter(torch.randn(outputs) / 4) if kernel else None
        line = torch.tensor(taps, dtype=torch.float32)
        matrix = line[:, None] * line[None] / line.sum() ** 2
        self.register_buffer("resample_filter", matrix[None, None] if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        size = 0 if self.weight is None else self.weight.shape[-1]
        if self.fused:
            assert self.weight is not None
            wide = self.resample_filter.shape[-1] // 2 - 1 + size // 2
            return self.shrunk(F.conv2d(x, self.weight, padding=wide)) + self.bias.view(-1, 1, 1)
        if self.up:
            x = self.enlarged(x)
        if self.down:
            border = self.resample_filter.shape[-1] // 2 - 1
            x = self.shrunk(F.pad(x, [border] * 4))
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=size // 2)

    def shrunk(self, x: Tensor) -> Tensor:
        """The weighted sum of every second window."""
        matrix = self.resample_filter[0, 0].to(x.dtype)
        windows = x.unfold(2, len(matrix), 2).unfold(3, len(matrix), 2)
        return (windows * matrix).sum((-2, -1))

    def enlarged(self, x: Tensor) -> Tensor:
        """Zeros between the pixels, then the filter."""
        matrix = 4 * self.resample_filter[0, 0].to(x.dtype)
        n, c, h, w = x.shape
        zeros = x.new_zeros(n, c, 2 * h, 2 * w)
        zeros[:, :, ::2, ::2] = x
        before, after = len(matrix) // 2, len(matrix) // 2 - 1
        windows = F.pad(zeros, [before, after] * 2).unfold(2, len(matrix), 1)
        return (windows.unfold(3, len(matrix), 1) * matrix).sum((-2, -1))


class Norm(Module):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(num_channels=channels, eps=eps)
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight = nn.Parameter(1 + torch.randn(channels) / 4)
        self.bias = nn.Parameter(torch.randn(channels) / 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(len(x), self.groups, -1)
        mean, variance = parts.mean(2, keepdim=True), parts.var(2, keepdim=True, correction=0)
        x = ((parts - mean) / (variance + self.eps).sqrt()).reshape(x.shape)
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class UNetBlock(Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        song: bool,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        taps: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__(in_channels=inputs, out_channels=outputs, attention=attention)
        eps, how = (1e-6 if song else 1e-5), {"up": up, "down": down, "taps": taps}
        self.in_channels, self.out_channels, self.song = inputs, outputs, song
        self.heads = (1 if song else outputs // 64) if attention else 0
        # NumPy values, as in the published pickles.
        self.skip_scale = np.sqrt(0.5) if song else 1
        self.norm0, self.conv0 = Norm(inputs, eps), Conv(inputs, outputs, 3, **how)
        self.affine = Linear(embedding, outputs if song else 2 * outputs)
        self.norm1, self.conv1 = Norm(outputs, eps), Conv(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or up or down:
            self.skip = Conv(inputs, outputs, 1 if song or inputs != outputs else 0, **how)
        if self.heads:
            self.norm2, self.qkv = Norm(outputs, eps), Conv(outputs, 3 * outputs, 1)
            self.proj = Conv(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        before, told = x, self.affine(embedding)[:, :, None, None]
        x = self.conv0(F.silu(self.norm0(x)))
        if self.song:
            x = self.norm1(x + told)
        else:
            scale, shift = told[:, : self.out_channels], told[:, self.out_channels :]
            x = self.norm1(x) * (1 + scale) + shift
        x = self.conv1(F.silu(x))
        x = (x + (before if self.skip is None else self.skip(before))) * float(self.skip_scale)
        return (x + self.attention(x)) * float(self.skip_scale) if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(n, self.heads, c // self.heads, 3, h * w)
        q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
        weights = torch.einsum("necq,neck->neqk", q, k) / (c // self.heads) ** 0.5
        y = torch.einsum("neqk,neck->necq", weights.softmax(-1), v)
        return self.proj(y.reshape(n, c, h, w))


class PositionalEmbedding(Module):
    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__(num_channels=channels)
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, x: Tensor) -> Tensor:
        exponents = torch.arange(self.count, dtype=torch.float32) / (self.count - self.endpoint)
        angles = x[:, None] * ((1 / 10000) ** exponents).to(x.dtype)
        return torch.cat([angles.cos(), angles.sin()], 1)


class FourierEmbedding(Module):
    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(num_channels=channels)
        self.register_buffer("freqs", torch.randn(channels // 2) * 16)

    def forward(self, x: Tensor) -> Tensor:
        angles = x[:, None] * (2 * np.pi * self.freqs).to(x.dtype)
        return torch.cat([angles.cos(), angles.sin()], 1)


class SongUNet(Module):
    """DDPM++ and NCSN++."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        a = {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1],
             "label_dim": 0, "augment_dim": 0, "channel_mult_noise": 1} | arguments  # fmt: skip
        self.residual = a["encoder_type"] == "residual"
        width, channels, taps = a["model_channels"], a["in_channels"], tuple(a["resample_filter"])
        noise, embedding = width * a["channel_mult_noise"], 4 * width
        if a["embedding_type"] == "positional":
            self.map_noise = PositionalEmbedding(noise, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise)
        self.map_label = Linear(a["label_dim"], noise) if a["label_dim"] else None
        self.map_augment = Linear(a["augment_dim"], noise, bias=False) if a["augment_dim"] else None
        self.map_layer0, self.map_layer1 = Linear(noise, embedding), Linear(embedding, embedding)

        def block(inputs: int, outputs: int, **how: bool) -> UNetBlock:
            return UNetBlock(inputs, outputs, embedding, song=True, taps=taps, **how)

        sizes = [a["img_resolution"] >> level for level in range(len(a["channel_mult"]))]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        now, image, skips = width, channels, [width]
        for level, (size, multiplier) in enumerate(zip(sizes, a["channel_mult"], strict=True)):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv(channels, width, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(now, now, down=True)
                skips.append(now)
                if self.residual:
                    fused = Conv(image, now, 3, down=True, taps=taps, fused=True)
                    self.enc[f"{size}x{size}_aux_residual"], image = fused, now
            for index in range(a["num_blocks"]):
                here, now = now, width * multiplier
                attends = size in a["attn_resolutions"]
                self.enc[f"{size}x{size}_block{index}"] = block(here, now, attention=attends)
                skips.append(now)
        for level, size in reversed(list(enumerate(sizes))):
            if size == sizes[-1]:
                self.dec[f"{size}x{size}_in0"] = block(now, now, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(now, now)
            else:
                self.dec[f"{size}x{size}_up"] = block(now, now, up=True)
            for index in range(a["num_blocks"] + 1):
                here, now = now + skips.pop(), width * a["channel_mult"][level]
                attends = index == a["num_blocks"] and size in a["attn_resolutions"]
                self.dec[f"{size}x{size}_block{index}"] = block(here, now, attention=attends)
            if level == 0:
                self.dec[f"{size}x{size}_aux_norm"] = Norm(now, 1e-6)
                self.dec[f"{size}x{size}_aux_conv"] = Conv(now, channels, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        embedding = self.map_noise(noise_labels)
        half = embedding.shape[1] // 2
        embedding = torch.cat([embedding[:, half:], embedding[:, :half]], 1)
        if self.map_label is not None and class_labels is not None:
            embedding = embedding + self.map_label(class_labels * class_labels.shape[1] ** 0.5)
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        image, skips = x, []
        for name, layer in self.enc.items():
            if "aux" in name:
                image = x = skips[-1] = (x + layer(image)) / np.sqrt(2)
                continue
            x = layer(x) if name.endswith("conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            if "aux_norm" in name:
                x = F.silu(layer(x))
            elif "aux_conv" in name:
                x = layer(x)
            else:
                wide = torch.cat([x, skips.pop()], 1) if "block" in name else x
                x = layer(wide, embedding)
        return x


class DhariwalUNet(Module):
    """ADM."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        a: dict[str, Any] = {"label_dim": 0, "augment_dim": 0} | arguments
        width, channels, embedding = a["model_channels"], a["in_channels"], 4 * a["model_channels"]
        self.map_noise = PositionalEmbedding(width, endpoint=False)
        self.map_augment = Linear(a["augment_dim"], width, bias=False) if a["augment_dim"] else None
        self.map_layer0, self.map_layer1 = Linear(width, embedding), Linear(embedding, embedding)
        labeled = a["label_dim"] > 0
        self.map_label = Linear(a["label_dim"], embedding, bias=False) if labeled else None

        def block(inputs: int, outputs: int, **how: Any) -> UNetBlock:
            return UNetBlock(inputs, outputs, embedding, song=False, **how)

        levels = [(a["img_resolution"] >> level, width * multiplier)
                  for level, multiplier in enumerate(a["channel_mult"])]  # fmt: skip
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        now = levels[0][1]
        skips = [now]
        for size, target in levels:
            attends = size in a["attn_resolutions"]
            if size == levels[0][0]:
                self.enc[f"{size}x{size}_conv"] = Conv(channels, now, 3)
            else:
                self.enc[f"{size}x{size}_down"] = block(now, now, down=True)
                skips.append(now)
            for index in range(a["num_blocks"]):
                self.enc[f"{size}x{size}_block{index}"] = block(now, target, attention=attends)
                now = target
                skips.append(now)
        for size, target in reversed(levels):
            attends = size in a["attn_resolutions"]
            if size == levels[-1][0]:
                self.dec[f"{size}x{size}_in0"] = block(now, now, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(now, now)
            else:
                self.dec[f"{size}x{size}_up"] = block(now, now, up=True)
            for index in range(a["num_blocks"] + 1):
                wide = now + skips.pop()
                self.dec[f"{size}x{size}_block{index}"] = block(wide, target, attention=attends)
                now = target
        self.out_norm, self.out_conv = Norm(now, 1e-5), Conv(now, channels, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        embedding = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise_labels))))
        if self.map_label is not None and class_labels is not None:
            embedding = embedding + self.map_label(class_labels)
        embedding, skips = F.silu(embedding), []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], 1) if "block" in name else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))


class EDMPrecond(Module):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        inner = dict(arguments)
        kind, channels = inner.pop("model_type"), inner.pop("img_channels")
        self.label_dim, self.sigma_data = inner.get("label_dim", 0), inner.pop("sigma_data", 0.5)
        inner.pop("use_fp16", None)
        made = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[kind]
        self.model = made(in_channels=channels, out_channels=channels, **inner)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: one-hot (B, K), or None for all zeros."""
        if self.label_dim and labels is None:
            labels = x.new_zeros(len(x), self.label_dim)
        s, d = sigma.view(-1, 1, 1, 1), self.sigma_data
        raw = self.model(x / (s**2 + d**2).sqrt(), sigma.log() / 4, labels)
        return d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * raw


class VPPrecond(EDMPrecond):
    """The baseline of table 1's column VP: the network sees the VP state and predicts the noise."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        s, slope = sigma.view(-1, 1, 1, 1), 19.9
        # The time at which the process has this noise level: slope / 2 t^2 + 0.1 t = ln(1 + s^2).
        t = ((0.01 + 2 * slope * (1 + sigma**2).log()).sqrt() - 0.1) / slope
        return x - s * self.model(x / (1 + s**2).sqrt(), 999 * t, labels)


class VEPrecond(EDMPrecond):
    """The baseline of table 1's column VE: the network sees the image itself."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x + sigma.view(-1, 1, 1, 1) * self.model(x, (sigma / 2).log(), labels)


class EDMLoss(Persistent):
    """An object of EDM's files that is no module; its content is ignored."""


class EasyDict(dict):
    """A dictionary of another class."""


EasyDict.__module__ = "dnnlib.util"


@contextmanager
def published_modules() -> Iterator[None]:
    """EDM's modules can be imported, and its reader executes the code that it finds."""

    def reconstruct(meta: dict[str, Any]) -> Any:
        exec(meta["module_src"], {})
        raise AssertionError("this reader only shows that the code is executed")

    reconstruct.__name__ = reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    reconstruct.__module__ = "torch_utils.persistence"
    fakes = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
    fakes["torch_utils.persistence"] = types.ModuleType("torch_utils.persistence")
    fakes["torch_utils.persistence"].__dict__["_reconstruct_persistent_obj"] = reconstruct
    fakes["dnnlib.util"] = types.ModuleType("dnnlib.util")
    fakes["dnnlib.util"].__dict__["EasyDict"] = EasyDict
    assert not fakes.keys() & sys.modules.keys()
    sys.modules.update(fakes)
    try:
        yield
    finally:
        for name in fakes:
            del sys.modules[name]


def pickled(network: Persistent, **more: Any) -> bytes:
    """The content of one of EDM's files."""
    document = {"ema": network, "loss_fn": EDMLoss(P_mean=-1.2), "augment_pipe": EDMLoss(p=0.12),
                "dataset_kwargs": EasyDict(path="cifar10.zip", use_labels=True)} | more  # fmt: skip
    with published_modules():
        return pickle.dumps(document)
