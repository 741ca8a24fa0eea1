"""Write one page about finished evaluations: `python -m evaluation.report results/digits`."""

import sys

from evaluation.config import ReportConfig
from evaluation.report.page import write
from rdc.commands.program import run_program


def main(config: ReportConfig) -> None:
    write(config.folders, config.out, log=print)


if __name__ == "__main__":
    sys.exit(run_program(main))
