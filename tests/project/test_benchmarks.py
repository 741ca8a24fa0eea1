"""Tables of costs."""

import pytest

from benchmarks.defenses import CostConfig, main
from evaluation.sweep_config import DEFENSES


@pytest.mark.slow
def test_every_defense_has_its_cost(capsys) -> None:
    main(CostConfig(images=1, repeats=1))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(DEFENSES)
    cost = {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}
    assert min(min(cells) for cells in cost.values()) > 0
    assert cost["rdc"][0] == cost["diffusion"][0]  # the maximization has the same network
    assert cost["rdc"][1] > cost["diffusion"][1] > cost["cnn"][1]
