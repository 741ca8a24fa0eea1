"""The program `python -m evaluation.certify`."""

from contextlib import nullcontext
from dataclasses import asdict, replace

import torch
from accelerate.utils import tqdm
from torch import Tensor, nn

from evaluation.certification.certificate import Certification
from evaluation.certification.certify import certify
from evaluation.certification.config import CertifyConfig
from evaluation.certification.sampling import classify
from evaluation.costs import seconds_per_image
from evaluation.defenses import build_base, hashes
from evaluation.distributed import make_accelerator
from evaluation.target import fit, shape_of
from rdc.data import load
from rdc.runs.atomic import write_json
from rdc.runs.exclusive import exclusive
from rdc.runs.provenance import provenance
from rdc.runs.run_log import entries

SUMMARY = "certificates.json"


def main(config: CertifyConfig) -> None:
    """Certify the images that have no certificate yet, and print the table."""
    accelerator = make_accelerator()
    defense = replace(config.defense, sigma=config.sigma)
    model = build_base(defense, data=config.data).to(accelerator.device).eval()
    shape = shape_of(model) if config.resize else None
    given = load(config.data, config.split, shape=shape, resize=config.resize)
    given = given.subset(slice(config.images))
    data = fit(model, given, f"--defense.kind {defense.kind}", f"--data {config.data}")
    for note in data.notes:
        accelerator.print(note)
    images, labels = data.images.to(accelerator.device), data.labels.to(accelerator.device)
    most = len(data) * config.planned_samples
    accelerator.print(
        f"{len(data)} images, at most {config.planned_samples:,} noisy copies of each: at most "
        f"{most * seconds_per_copy(model, images, config) / 60:.1f} minutes on one process"
    )
    before = len(list(entries(config.out)))
    alone = exclusive(config.out) if accelerator.is_main_process else nullcontext()
    with alone, tqdm(total=most // accelerator.num_processes, unit="sample") as bar:
        found = certify(
            model, images, labels, out=config.out, max_rows=config.max_rows,
            context={
                "defense": asdict(defense), "data": config.data, "split": config.split,
                "images": len(data), "resize": config.resize,
            },
            files=hashes(defense, None, data=config.data),
            accelerator=accelerator, progress=bar.update, **config.smoothing,
        )  # fmt: skip
    if accelerator.is_main_process:
        file = config.out / SUMMARY
        finished = file if before == len(data) else None
        write_json(file, summary(found, config, provenance(given, finished=finished)))
        print(f"{found.table()}\nwrote {file}")
    accelerator.end_training()


def seconds_per_copy(model: nn.Module, images: Tensor, config: CertifyConfig) -> float:
    """Seconds for one noisy copy of an image."""
    rows = min(config.max_rows, 64)
    noisy = images[:1] + config.sigma * torch.randn_like(images[:1].expand(rows, -1, -1, -1))
    return seconds_per_image(lambda count: classify(model, noisy[:count]), rows)


def summary(found: Certification, config: CertifyConfig, facts: dict) -> dict:
    """The content of `certificates.json`."""
    rows = [
        {
            "radius": radius,
            "certified_accuracy": found.certified_accuracy(radius),
            "interval": found.interval(radius),
            "undecided": found.undecided(radius),
        }
        for radius in config.levels
    ]
    return {
        "config": asdict(config), **facts, "rows": rows, "abstained": found.abstained,
        "passes": found.passes, "seconds": found.seconds, "images": len(found.certificates),
        "table": found.table(),
    }  # fmt: skip
