"""Certify a defense by randomized smoothing:
`python -m evaluation.certify --out results/apndc --sigma 0.25 --defense.kind apndc`.
"""

# The program lives in `evaluation.certification.program`: were this module imported, it would take
# the place of the function `evaluation.certify`.

import sys

from evaluation.certification.program import main
from rdc.commands.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(main))
