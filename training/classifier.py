"""Train the ordinary classifier that diffusion classifiers are compared with:
`accelerate launch -m training.classifier --out runs/digits-cnn`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from accelerate.utils import tqdm

from rdc.cnn import CNN, CNNConfig
from rdc.data import load
from rdc.provenance import provenance
from training.accelerator import start_accelerator
from training.batches import batch_rows


@dataclass(frozen=True)
class ClassifierTrainConfig:
    """Settings of one run: Adam on the cross-entropy, the rate brought to 0 by a cosine."""

    out: Path
    """folder for the trained classifier and `training.json`"""
    data: str = "digits"
    network: CNNConfig = field(default_factory=CNNConfig)
    steps: int = 600
    batch_size: int = 128
    """images per step, over all processes"""
    learning_rate: float = 2e-3
    seed: int = 0


def main(config: ClassifierTrainConfig) -> None:
    """Train, measure on the validation split, save."""
    accelerator = start_accelerator()
    data, validation = load(config.data, "train"), load(config.data, "validation")
    torch.manual_seed(config.seed)
    network = CNN(CNNConfig(**{**asdict(config.network), "class_names": data.class_names}))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    model, optimizer = accelerator.prepare(network, optimizer)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    for step in tqdm(range(config.steps), desc=f"training on {config.data}", unit="step"):
        rows = batch_rows(config.seed, step, config.batch_size, len(data))[mine]
        images, labels = data.images[rows], data.labels[rows]
        logits = model(images.to(accelerator.device))
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(logits, labels.to(accelerator.device)))
        optimizer.step()
        schedule.step()
    if accelerator.is_main_process:
        network = accelerator.unwrap_model(model).eval().cpu()
        with torch.no_grad():
            right = network(validation.images).argmax(1) == validation.labels
        config.out.mkdir(parents=True, exist_ok=True)
        network.save_pretrained(config.out)
        record = {
            "config": asdict(config),
            **provenance(data),
            "validation_accuracy": right.double().mean().item(),
        }
        (config.out / "training.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
        print(f"validation accuracy {record['validation_accuracy']:.3f}; saved {config.out}")
    accelerator.end_training()


if __name__ == "__main__":
    main(tyro.cli(ClassifierTrainConfig))
