"""Costs, and ratios of equal work."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.defenses import CostConfig, main
from benchmarks.peers import Library, Work, peers
from benchmarks.ratios import ours
from evaluation.sweep_config import DEFENSES
from rdc.choices import Norm
from tests.support.optional import installed


@pytest.mark.slow
def test_every_defense_has_its_cost(capsys) -> None:
    main(CostConfig(images=1, repeats=1))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(DEFENSES)
    cost = {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}
    assert min(min(cells) for cells in cost.values()) > 0
    assert cost["rdc"][0] == cost["diffusion"][0]  # the maximization has the same network
    assert cost["rdc"][1] > cost["diffusion"][1] > cost["cnn"][1]


class Counted(nn.Module):
    """A linear network that counts the images it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.asked = nn.Linear(64, 4), 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.network(images.flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("library", ["pyautoattack", "torchattacks"])
def test_both_sides_of_a_ratio_make_as_many_passes(library: Library, norm: Norm) -> None:
    installed(library)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Counted().requires_grad_(False).eval()
        images = torch.rand(3, 1, 8, 8)
        labels = network(images).argmax(1)
        work = Work(network, images, labels, norm, eps=1e-4, targets=2, queries=50, steps=50)
        theirs, mine = peers(library, work), ours(work)
        for name in theirs:
            asked = []
            for attack in (theirs[name], mine[name]):
                network.asked = 0
                left = network(attack()).argmax(1) == labels
                assert left.all()  # no image falls, so that all steps are made
                asked.append(network.asked)
            assert asked[1] == pytest.approx(asked[0], rel=0.1), name
