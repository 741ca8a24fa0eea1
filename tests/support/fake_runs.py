"""Folders as finished evaluations leave them, of defenses whose robustness is made up."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from evaluation.results.statistics import clopper_pearson
from rdc.data import load

ATTACKS = ("exact/apgd-ce", "exact/apgd-margin", "bpda/apgd-ce", "square")
CHECKS = [
    {"name": "finite differences", "passed": True, "detail": "largest error 2e-7 of 40 directions"},
    {"name": "no budget, no effect", "passed": True, "detail": "98.0 % at eps 0 and clean"},
    {"name": "planted weakness", "passed": None, "detail": "not run: asked for by --planted"},
]
BROKEN = {"name": "finite differences", "passed": False, "detail": "an error of 0.7; 1e-3 allowed"}


@dataclass(frozen=True)
class Fake:
    """`halved` is the budget at which half of the images fall; `draws` above 1 makes a random
    defense, which has all protocols.
    """

    defense: str = "classifier"
    norm: str = "linf"
    eps: tuple[float, ...] = (0.1, 0.2)
    images: int = 12
    halved: float = 0.15
    draws: int = 1
    purifies: bool = False
    checks: tuple[dict[str, Any], ...] = tuple(CHECKS)
    classes: tuple[str, ...] = tuple(map(str, range(10)))
    fingerprint: str = "d1" * 32
    steps: int = 40
    batch: int = 8
    sigma: float | None = None


def make(folder: Path, fake: Fake) -> Path:
    """Write the folder of a finished run."""
    (folder / "images").mkdir(parents=True)
    data = load("digits", "test").subset(slice(fake.images))
    given, labels = data.images.numpy(), data.labels.tolist()
    rng = np.random.default_rng(sum(map(ord, fake.defense + fake.norm)))
    # How much an image withstands; the same images are hard for every defense.
    hardness = np.random.default_rng(5).normal(0, 0.5, fake.images)
    withstood = fake.halved * np.exp(hardness + rng.normal(0, 0.3, fake.images))
    withstood[rng.random(fake.images) < 0.03] = 0
    records = []
    for eps in (0.0, *fake.eps):
        worst, size = given.copy(), np.full(fake.images, -1.0)
        culprits = ["none"] * fake.images
        for name in ATTACKS if eps else ("none",):
            strength = rng.uniform(0.6, 1.0)
            change = attack(given, eps, rng, fake.norm)
            for i in range(fake.images):
                excess = strength * eps / withstood[i] if withstood[i] else 2.0
                record = judged(fake, i, labels[i], eps, name, excess, rng)
                record |= {"linf": float(np.abs(change[i]).max()),
                           "l2": float(np.linalg.norm(change[i]))}  # fmt: skip
                records.append(record)
                if excess > size[i]:
                    worst[i], size[i], culprits[i] = given[i] + change[i], excess, name
        keep(folder, fake, eps, worst, culprits)
    settings = config(folder, fake)
    (folder / "settings.json").write_text(json.dumps(settings | {"out": None}))
    half = len(records) // 2
    for part, rows in enumerate((records[:half], records[half:])):
        lines = "".join(json.dumps(record) + "\n" for record in rows)
        (folder / f"records-{part:03d}.jsonl").write_text(lines)
    (folder / "summary.json").write_text(json.dumps(summary(settings, fake, records)))
    return folder


def attack(given: np.ndarray, eps: float, rng: np.random.Generator, norm: str) -> np.ndarray:
    """A smooth change of the images within the budget and within [0, 1]."""
    change = eps * np.sign(rng.normal(size=given.shape)).astype(np.float32)
    if norm == "l2":
        change /= np.sqrt(change[0].size)
    return (given + change).clip(0, 1) - given


def judged(fake: Fake, image: int, label: int, eps: float, name: str, excess: float, rng) -> dict:
    share = 1 / (1 + excess**6) if excess < 1e3 else 0.0
    classes = len(fake.classes)

    def answer(right: bool) -> int:
        return label if right else int(label + rng.choice([1, 1, 3, 5])) % classes

    predictions = [answer(bool(r)) for r in rng.random(fake.draws) < share]
    frozen = answer(share > 0.5)
    sure = float(np.clip(rng.normal(0.6 + 0.75 * abs(share - 0.5), 0.1), 1.5 / classes, 1))
    return {
        "image": image, "label": label, "eps": eps, "attack": name, "frozen": frozen,
        "frozen_confidence": round(sure, 4),
        "predictions": predictions if fake.draws > 1 else [],
        "confidences": [round(sure, 4)] * fake.draws if fake.draws > 1 else [],
        "seconds": round(float(rng.uniform(0.01, 0.02)), 4) if eps else 0.0,
    }  # fmt: skip


def keep(folder: Path, fake: Fake, eps: float, images: np.ndarray, culprits: list[str]) -> None:
    for start in range(0, fake.images, fake.batch):
        rows = slice(start, start + fake.batch)
        part = {"images": np.ascontiguousarray(images[rows], np.float32)}
        if fake.purifies:
            near = [np.roll(part["images"], step, axis) for step in (-1, 1) for axis in (2, 3)]
            part["purified"] = ((2 * part["images"] + sum(near)) / 6).astype(np.float32)
        file = folder / "images" / f"eps{eps:g}-{start:05d}.safetensors"
        save_file(part, file, metadata={"attacks": json.dumps(culprits[rows])})


def config(folder: Path, fake: Fake) -> dict[str, Any]:
    return {
        "out": str(folder),
        "defense": {
            "kind": fake.defense, "model": "digits", "weight": None, "seed": 0,
            "sigma": fake.sigma, "noisy_copies": 16,
        },
        "suite": {"steps": fake.steps, "targets": 3, "eot_samples": fake.draws},
        "data": "digits", "split": "test", "images": fake.images, "norm": fake.norm,
        "eps": list(fake.eps), "eval_draws": 20, "batch_size": fake.batch, "seed": 0,
    }  # fmt: skip


def summary(settings: dict, fake: Fake, records: list[dict]) -> dict[str, Any]:
    found = {}
    for eps in (0.0, *fake.eps):
        rows = {name: [r for r in records if (r["eps"], r["attack"]) == (eps, name)]
                for name in (ATTACKS if eps else ("none",))}  # fmt: skip
        scores = {name: scored(part) for name, part in rows.items()}
        if eps:
            clean = scored([r for r in records if not r["eps"]])
            scores["worst"] = {
                protocol: np.min([clean[protocol], *(s[protocol] for s in scores.values())], axis=0)
                for protocol in clean
            }
        found[f"{eps:g}"] = {
            name: {protocol: share(values) for protocol, values in by.items()}
            for name, by in scores.items()
        }
    return {
        "config": settings, "command": "python -m evaluation.evaluate --out x",
        "commit": "0123abc" * 5 + "+", "data_fingerprint": fake.fingerprint, "python": "3.12.1",
        "packages": {"torch": "2.15.0", "numpy": "2.4.6"}, "weights": {"digits": "ab" * 32},
        "calls_per_image": {"gradients": 246, "forwards": 1012}, "seconds_per_image": 1.234,
        "norm": fake.norm, "class_names": list(fake.classes), "accuracy": found,
        "checks": list(fake.checks), "text": "",
    }  # fmt: skip


def scored(rows: list[dict]) -> dict[str, np.ndarray]:
    right = {"frozen": np.array([float(r["frozen"] == r["label"]) for r in rows])}
    if rows[0]["predictions"]:
        drawn = np.array([[p == r["label"] for p in r["predictions"]] for r in rows])
        votes = [max(p := r["predictions"], key=p.count) == r["label"] for r in rows]
        right |= {"fresh": drawn.mean(1), "majority": np.array(votes, float),
                  "worst draw": drawn.all(1).astype(float)}  # fmt: skip
    return right


def share(values: np.ndarray) -> dict[str, float]:
    low = clopper_pearson(int(np.floor(values.sum())), len(values))[0]
    high = clopper_pearson(int(np.ceil(values.sum())), len(values))[1]
    return {"accuracy": float(values.mean()), "low": low, "high": high, "images": len(values)}
