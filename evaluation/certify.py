"""Certify a defense by randomized smoothing:
`python -m evaluation.certify --out results/apndc --sigma 0.25 --defense.kind apndc`.
"""

# The program lives in `evaluation.certification.program`: were this module imported, it would take
# the place of the function `evaluation.certify`.
import tyro

from evaluation.certification.program import CertifyConfig, main

if __name__ == "__main__":
    main(tyro.cli(CertifyConfig))
