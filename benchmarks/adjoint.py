"""Error of the adjoint method's gradient against the derivative of the same solution.

`python -m benchmarks.adjoint` purifies digits under an exactly known density, a Gaussian of width
`std` around every training image, and differentiates the same solution of the same Brownian paths
twice: by torchsde's adjoint method, DiffPure's published gradient, and through the solver's steps.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from purification.torchsde_purifier import TorchsdePurifier
from rdc import DenoiserLike, OptimalDenoiser
from rdc.commands.program import run_program
from rdc.data import load
from rdc.images import to_x
from rdc.runs.atomic import write_json
from rdc.runs.provenance import provenance

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class AdjointConfig:
    """Densities, step sizes and precisions; all are combined."""

    std: tuple[float, ...] = (0.02, 0.05, 0.1, 0.3)
    """widths of the modes on [-1, 1]: the narrower, the stiffer the SDE"""
    dt: tuple[float, ...] = (0.01, 0.005, 0.0025, 0.001)
    t_star: float = 0.1
    images: int = 32
    """number of images, from the start of the test split"""
    json: Path | None = None
    """write the numbers and where they come from to this file"""


def main(config: AdjointConfig) -> None:
    """Print the table: medians over the images, and the worst image."""
    train, test = load("digits", "train"), load("digits", "test").subset(slice(config.images))
    print(f"{len(test)} digits, t* = {config.t_star:g}; adjoint against exact gradient")
    print(f"{'':<23}{'cosine':>17}{'relative error':>19}{'same sign, %':>14}")
    print(f"{'std':>5} {'dt':>7} {'dtype':>9}" + f"{'median':>9}{'worst':>8}" * 3)
    rows = []
    for std in config.std:
        for dtype in DTYPES:
            x, labels = to_x(train.images).to(DTYPES[dtype]), train.labels
            denoiser = OptimalDenoiser(x, labels, bandwidth=std)
            for dt in config.dt:
                images = test.images.to(DTYPES[dtype])
                found = compare(denoiser, images, t_star=config.t_star, dt=dt)
                row = {"std": std, "dt": dt, "dtype": dtype, **summary(found)}
                rows.append(row)
                print(line(row))
    if config.json is not None:
        record = {"config": asdict(config), **provenance(test), "results": rows}
        write_json(config.json, record)
        print(f"wrote {config.json}")


def compare(
    denoiser: DenoiserLike, images: Tensor, *, t_star: float, dt: float
) -> dict[str, Tensor]:
    """Per image (B,): cosine, relative error and share of equal signs of the adjoint gradient."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)

    def gradient(mode) -> Tensor:
        purifier = TorchsdePurifier(denoiser, t_star, dt=dt, gradient=mode)
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad((purifier(leaf) * v).sum(), leaf)[0].flatten(1).double()

    adjoint, exact = gradient("adjoint"), gradient("exact")
    return {
        "cosine": F.cosine_similarity(adjoint, exact),
        "error": (adjoint - exact).norm(dim=1) / exact.norm(dim=1),
        "same_sign": (adjoint.sign() == exact.sign()).double().mean(1),
    }


def summary(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Median and worst image of each measure."""
    worst = {name: x.max() if name == "error" else x.min() for name, x in found.items()}
    return {
        name: {"median": x.median().item(), "worst": worst[name].item()}
        for name, x in found.items()
    }


def line(row: dict) -> str:
    cosine, error, sign = (list(row[name].values()) for name in ("cosine", "error", "same_sign"))
    return (
        f"{row['std']:>5g} {row['dt']:>7g} {row['dtype']:>9}{cosine[0]:>9.4f}{cosine[1]:>8.3f}"
        f"{error[0]:>9.2g}{error[1]:>8.2g}{100 * sign[0]:>9.1f}{100 * sign[1]:>8.1f}"
    )


if __name__ == "__main__":
    sys.exit(run_program(main))
