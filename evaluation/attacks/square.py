"""Square attack (Andriushchenko et al., ECCV 2020): random search by squares, without gradients."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.rng import generators, pick, spawn, uniform
from evaluation.attacks.validation import checked, prepared
from evaluation.attacks.worst_case import Selection
from rdc.choices import Norm
from rdc.norms import project, wide

HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
BLOCK = 50  # queries whose random numbers are drawn together, and until a random model draws anew


@prepared
def square(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    queries: int = 5000,
    share: float = 0.8,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images within `eps` of `images` (B, C, H, W) in [0, 1] that raise the margin.

    Algorithm 1 of the paper, with the squares of algorithms 2 (L-infinity) and 3 (L2): `queries`
    proposals, each a square that first covers the `share` of an image and less and less later on. A
    proposal is accepted where it raises the margin; an image that is misclassified rests.

    With several draws (see `Expectation`), the margin is their mean, a proposal and the point that
    it would replace are judged by the same draws, and every 50 queries the point meets new ones.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds, queries=queries)
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be in (0, 1]: of the image's pixels")
    if eps == 0:
        return images
    victim = Expectation.of(model)
    selection = Selection(victim, images, labels, seeds)

    def run(index: Tensor, seeds: list[int]) -> Tensor:
        return _search(victim, images[index], labels[index], seeds, eps, norm, queries, share)

    selection.run(run, 0)
    return selection.images


def _search(
    victim: Expectation,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    eps: float,
    norm: Norm,
    queries: int,
    share: float,
) -> Tensor:
    start, propose = (_stripes, _recolor) if norm == "linf" else (_tiles, _move_mass)
    sources, draws = generators(spawn(seeds, 0)), spawn(seeds, 1)
    point = start(images, eps, sources)
    judged = victim.evaluate(point, labels, seeds=draws)
    numbers = images
    for query in range(queries):
        if query % BLOCK == 0:
            numbers = uniform(sources, (BLOCK, 5 + images.shape[1]), images)
            if victim.draws > 1:
                draws = spawn(seeds, 1, query)
                judged = victim.evaluate(point, labels, seeds=draws)
        index = (judged.wrong < 1).nonzero()[:, 0]
        if not len(index):
            if victim.draws == 1:
                break
            continue
        chosen = draws
        rows: Tensor | slice = slice(None)  # of all images, which is cheaper
        if len(index) < len(images):
            chosen, rows = pick(draws, index), index
        pixels = share * shrinking(query / queries) * images[0, 0].numel()
        proposed = propose(
            images[rows], point[rows], eps, pixels**0.5, numbers[:, query % BLOCK][rows]
        )
        now = victim.evaluate(proposed, labels[rows], seeds=chosen)
        better = now.margin > judged.margin[rows]
        point[rows] = torch.where(wide(better), proposed, point[rows])
        for values, new in zip(judged, now, strict=True):
            values[rows] = torch.where(better, new, values[rows])
    return point


def shrinking(progress: float) -> float:
    """The share of the first square's area that is left after `progress` in [0, 1]."""
    return 0.5 ** sum(10_000 * progress > at for at in HALVED_AT)


def _stripes(images: Tensor, eps: float, sources: Sequence[torch.Generator]) -> Tensor:
    """Vertical stripes of +- eps in each channel."""
    _, channels, _, width = images.shape
    signs = _signs(uniform(sources, (channels, 1, width), images))
    return project(images + eps * signs, images, eps, "linf")


def _recolor(images: Tensor, points: Tensor, eps: float, side: float, numbers: Tensor) -> Tensor:
    """A square in which the change is +- eps, one sign per channel (algorithm 2)."""
    length = min(max(round(side), 1), *images.shape[2:])
    inside = _square(images, length, numbers[:, 0], numbers[:, 1])[0]
    signs = _signs(numbers[:, 5:])[:, :, None, None]
    return project(torch.where(inside, images + eps * signs, points), images, eps, "linf")


def _tiles(images: Tensor, eps: float, sources: Sequence[torch.Generator]) -> Tensor:
    """Five tiles of shape eta a side, one sign per tile and channel, scaled to eps."""
    _, channels, height, width = images.shape
    side = max(1, min(height, width) // 5)
    down, across = (torch.arange(n, device=images.device) for n in (height, width))
    signs = _signs(uniform(sources, (channels, -(-height // side), -(-width // side)), images))
    signs = signs[:, :, down // side][:, :, :, across // side]
    change = signs * eta(side, images)[down % side][:, across % side]
    change = change / change.flatten(1).norm(dim=1)[:, None, None, None]
    return project(images + eps * change, images, eps, "l2")


def _move_mass(images: Tensor, points: Tensor, eps: float, side: float, numbers: Tensor) -> Tensor:
    """The change of one square goes to another, onto a bump of shape eta (algorithm 3)."""
    length = max(round(side), 3)
    length = min(length + (length % 2 == 0), *images.shape[2:])
    gains, rows, columns = _square(images, length, numbers[:, 0], numbers[:, 1])
    loses, _, _ = _square(images, length, numbers[:, 2], numbers[:, 3])
    change = points - images
    unused = (eps**2 - change.square().sum((1, 2, 3), keepdim=True)).clamp_min(0)
    either = (change.square() * (gains | loses)).sum((2, 3), keepdim=True)
    available = (either + unused / images.shape[1]).sqrt()

    bump = _bump(length, images.dtype, images.device)
    turned = wide(numbers[:, 4] < 0.5)
    bumps = torch.where(turned, bump[rows, columns], bump[columns, rows]) * gains
    there = change * gains
    new = _signs(numbers[:, 5:])[:, :, None, None] * bumps + there / _norm(there)
    change = torch.where(gains, available * new / _norm(new), change * ~loses)
    return project(images + change, images, eps, "l2")


@cache
def _bump(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """eta at norm 1: (side, side)."""
    bump = eta(side, torch.zeros((), dtype=dtype, device=device))
    return bump / bump.norm()


def eta(side: int, like: Tensor) -> Tensor:
    """Two pyramids of opposite sign beside each other: (side, side)."""
    halves = [_pyramid(side, columns, like) for columns in (side // 2, side - side // 2)]
    return torch.cat([halves[0], -halves[1]], dim=1)


def _pyramid(rows: int, columns: int, like: Tensor) -> Tensor:
    """Sum over k up to n - (distance to the middle) of 1 / (n + 1 - k)^2, with n = rows // 2."""
    n = rows // 2
    heights = (torch.arange(n + 1, 0, -1).to(like) ** -2).cumsum(0)
    down = (torch.arange(rows, device=like.device) - n).abs()
    across = (torch.arange(columns, device=like.device) - columns // 2).abs()
    return heights[n - torch.maximum(down[:, None], across[None, :])]


def _square(
    images: Tensor, length: int, down: Tensor, across: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A square at a place given by two uniform numbers per image: its mask (B, 1, H, W), and the
    row and column of each pixel in it, (B, 1, H, W) and 0 outside."""
    masks, places = [], []
    for dim, number in ((2, down), (3, across)):
        count = images.shape[dim]
        corner = (number * (count - length + 1)).long().clamp_max(count - length)
        place = torch.arange(count, device=images.device) - corner[:, None]
        place = place[:, None, :, None] if dim == 2 else place[:, None, None, :]
        masks.append((place >= 0) & (place < length))
        places.append(place)
    mask = masks[0] & masks[1]
    rows, columns = (torch.where(mask, place, 0) for place in places)
    return mask, rows, columns


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers)


def _norm(change: Tensor) -> Tensor:
    """Norm of each channel (B, C, 1, 1); 1 where it is 0."""
    norm = change.flatten(2).norm(dim=2)[:, :, None, None]
    return torch.where(norm > 0, norm, torch.ones_like(norm))
