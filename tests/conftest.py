"""Settings shared by the tests; the folder itself is importable, for `oracle` and `tiny`."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
# The tests' networks are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)
