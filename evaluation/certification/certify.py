"""Certified radii of a classifier under randomized smoothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from evaluation.arguments import given_data, given_numbers, ready
from evaluation.attacks.eot import Expectation
from evaluation.attacks.validation import checked
from evaluation.certification.certificate import Certificate, Certification
from evaluation.certification.config import SamplingMethod, SmoothingConfig
from evaluation.certification.sampling import Candidate, certificates, require_independent
from evaluation.certification.smoothed import SmoothedClassifier
from evaluation.identity import identity
from evaluation.target import device_of
from evaluation.work_queue import Claims
from rdc.runs.fingerprints import tensors_hash
from rdc.runs.run_log import RunLog


def certify(
    model: nn.Module | Callable[[Tensor], Tensor],
    images: Any,
    labels: Any = None,
    *,
    sigma: float,
    radii: float | Sequence[float] | None = None,
    method: SamplingMethod = "sequential",
    samples: int = 1000,
    selection: int | None = None,
    alpha: float = 0.001,
    seed: int = 0,
    max_rows: int = 256,
    out: str | Path | None = None,
    context: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    accelerator: Accelerator | None = None,
    progress: Callable[[int], object] = lambda samples: None,
) -> Certification:
    """Certified L2 radii of the classifier that `model` becomes under Gaussian noise.

    The certificates are about g(v) = argmax_c P[model(v + sigma n) = c] (Cohen et al., ICML 2019),
    not about `model` itself; `SmoothedClassifier.predict` gives the answers of g. Each certificate
    is wrong with probability alpha at most.

    model: a module, or a function, from [0, 1] images (B, C, H, W) to logits (B, K). It gets noisy
        images, outside [0, 1]. Its own randomness may be frozen, or fresh for every call.
    images, labels: tensors (N, C, H, W) in [0, 1], on the model's device, and (N,) int64; or
        images and labels of another kind, as `evaluation.evaluate` takes them.
    sigma: standard deviation of the noise, on the scale of the images.
    radii, method, samples, selection, alpha, seed: see `SmoothingConfig`.
    max_rows: noisy images per call of the model.
    out: folder for a record of each image; the same call continues after an interruption.
    context: further settings of the run, such as the model's, to which the folder then belongs,
        as it does to the images, the model's weights and all settings above.
    files: hashes of further files that the model is made of, by description, likewise.
    accelerator: its processes share the images; they need the same folder `out`.
    progress: told how many of N * (selection + samples) samples are done since the last time; of
        several processes each has its share of them.

    Raises ValueError where nothing can be certified: too few samples for alpha, a model whose
    answer for an image depends on its batch, or a smoothed classifier with frozen noise.
    """
    config = SmoothingConfig(
        sigma=sigma, radii=None if radii is None else given_numbers("radii", radii), method=method,
        samples=samples, selection=selection, alpha=alpha, seed=seed,
    )  # fmt: skip
    model = ready(model, "model")
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        data = given_data(images, labels, ())
        images, labels = data.images.to(device_of(model)), data.labels.to(device_of(model))
    checked(images, labels, eps=0)  # as attacks do; there is no budget
    require_certifiable(model, images, labels)
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows} must be at least 1")
    if out is None and accelerator is not None and accelerator.num_processes > 1:
        raise ValueError("out=None: several processes need a folder in which they share records")
    records = Records(
        len(images), out, accelerator,
        settings={**(context or {}), **asdict(config)},
        inputs={
            "images and labels": tensors_hash({"images": images, "labels": labels}),
            **identity(model, "model"),
            **(files or {}),
        },
    )  # fmt: skip
    known = len(images) - len(records.missing)
    progress(known * config.planned_samples // records.processes)
    candidates = (
        Candidate(index, images[index], int(labels[index]), config)
        for index in records.missing
        if records.claims.take(str(index))
    )
    for each in certificates(
        model, candidates, max_rows=max_rows, most=records.most_at_once, device=images.device,
        progress=progress,
    ):  # fmt: skip
        records.append(each)
    return Certification(config, records.all())


class Records:
    """The certificates of a run: in memory, or in a folder that outlives it."""

    def __init__(
        self,
        count: int,
        out: str | Path | None,
        accelerator: Accelerator | None,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> None:
        self.processes = accelerator.num_processes if accelerator else 1
        self._found: list[Certificate] = []
        self._log = None
        if out is not None:
            process = accelerator.process_index if accelerator else 0
            self._log = RunLog(Path(out), settings, inputs=inputs, process=process)
            self._found = self._read()
        known = {each.image for each in self._found}
        self.missing = [index for index in range(count) if index not in known]
        self.claims = Claims(None if out is None else Path(out) / ".claims", accelerator)

    @property
    def most_at_once(self) -> int:
        """Images that one process may work on at a time, so that others find some too."""
        if self.processes == 1:
            return len(self.missing)
        return max(1, len(self.missing) // (4 * self.processes))

    def append(self, certificate: Certificate) -> None:
        self._found.append(certificate)
        if self._log is not None:
            self._log.append([asdict(certificate)])

    def all(self) -> list[Certificate]:
        """All certificates by image; of several processes when the last one is done."""
        self.claims.forget()
        found = self._found if self._log is None else self._read()
        return sorted(found, key=lambda each: each.image)

    def _read(self) -> list[Certificate]:
        assert self._log is not None
        return [*self._log.read(Certificate.from_json)]


def require_certifiable(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse a model about which randomized smoothing proves nothing, and labels beyond its K."""
    if isinstance(model, SmoothedClassifier):
        raise ValueError(
            "model: already a SmoothedClassifier. Certificates hold for fresh smoothing noise that "
            "certify draws itself; frozen smoothing noise has none. Pass its `model` and `sigma`"
        )
    require_independent(model)
    # Refuses logits of other shapes, and labels that have none, before any work.
    Expectation(model).evaluate(images[:1], labels.max()[None], seeds=[0])
