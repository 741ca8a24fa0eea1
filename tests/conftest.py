"""Fixtures shared by the tests; the folder itself is importable, for `oracle`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
