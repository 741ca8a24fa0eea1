"""What tests run in processes of their own."""

from pathlib import Path

from training.denoising import TrainConfig
from training.train import main


def train_or_report(config: TrainConfig, report: Path) -> None:
    """Train; an OSError is written down."""
    try:
        main(config)
    except OSError as error:
        report.write_text(str(error))
        raise
