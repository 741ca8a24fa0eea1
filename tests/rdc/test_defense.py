"""A defense over copies: draws of their own, mean probability, votes, and batches that couple."""

import pytest
import torch
from torch import Tensor, nn

from evaluation.attacks.pgd import pgd
from purification import DiffusionPurifier, PurifierConfig
from purification.guidance import ClassifierGuidance, Guidance, Moment
from rdc import (
    ClassifierConfig,
    Defense,
    Denoiser,
    DiffusionClassifier,
    ImageClassifier,
    ImageClassifierConfig,
    LikelihoodMaximizer,
    MaximizationConfig,
    Normalize,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.defense import batch_coupled
from rdc.gradients import State
from rdc.noise import Noise, using_draws
from tests.support.denoisers import random_denoiser
from tests.support.oracle import central_difference, some_images, two_classes
from tests.support.tiny import tiny_denoiser

IMAGES = some_images(3)


class Linear(nn.Module):
    """1x2x2 images to three logits, float64; steep, so that copies can disagree."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = 40 * torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ self.weight.T


def purifier(**options) -> DiffusionPurifier:
    return DiffusionPurifier(two_classes(), PurifierConfig(steps=3, rounds=2), **options)


def parts(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """A purifier and a classifier."""
    if name == "diffusion":
        return purifier(**options), Linear()
    if name == "maximizer":
        config = MaximizationConfig(steps=2, budget=0.3, step_size=0.05, draws=2)
        return LikelihoodMaximizer(two_classes(), config, **options), Linear()
    config = RDCConfig(
        ClassifierConfig(levels=2, draws=1, sigma_max=2.0), MaximizationConfig(steps=2)
    )
    rdc = RobustDiffusionClassifier(two_classes(), config, **options)
    return rdc.purifier, rdc.classifier


kinds = pytest.mark.parametrize("name", ["diffusion", "maximizer", "rdc"])


@kinds
def test_one_copy_is_the_plain_defense(name: str) -> None:
    module, classifier = parts(name)
    defense = Defense(module, classifier)
    plain = classifier(module(IMAGES))
    assert torch.equal(defense(IMAGES), plain)
    assert torch.equal(defense.votes(IMAGES)[:, 0], plain)
    assert torch.equal(defense.predict(IMAGES), plain.argmax(1))


@kinds
@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_copies_differ_and_the_first_is_the_plain_one(name: str, noise) -> None:
    module, classifier = parts(name, noise=noise)
    votes = Defense(module, classifier, copies=4).votes(IMAGES)
    assert votes.shape[:2] == (3, 4)
    for b in range(3):
        assert len({tuple(vote.tolist()) for vote in votes[b]}) == 4
    if noise == "frozen":
        torch.testing.assert_close(votes[:, 0], classifier(module(IMAGES)), rtol=0, atol=1e-9)


@kinds
def test_votes_of_an_image_do_not_depend_on_the_batch_or_on_how_many_there_are(name: str) -> None:
    five = Defense(*parts(name), copies=5)
    together = five.votes(IMAGES)
    alone = torch.cat([five.votes(image[None]) for image in IMAGES])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)
    two = Defense(*parts(name), copies=2).votes(IMAGES)
    torch.testing.assert_close(two, together[:, :2], rtol=0, atol=1e-9)


@kinds
def test_fresh_copies_in_one_call_are_as_many_calls(name: str) -> None:
    votes = Defense(*parts(name, noise="fresh"), copies=3).votes(IMAGES[:1])
    single = Defense(*parts(name, noise="fresh"))
    one_by_one = torch.stack([single(IMAGES[:1]) for _ in range(3)], 1)
    torch.testing.assert_close(votes, one_by_one, rtol=0, atol=1e-9)


@kinds
def test_logits_are_the_log_of_the_mean_probability(name: str) -> None:
    defense = Defense(*parts(name), copies=4)
    p = defense.votes(IMAGES).softmax(2).mean(1)
    torch.testing.assert_close(defense(IMAGES), p.log())
    torch.testing.assert_close(defense(IMAGES).exp().sum(1), torch.ones(3).double())


@kinds
def test_gradient_over_copies_is_exact(name: str) -> None:
    defense, v = Defense(*parts(name), copies=3), some_images(3, seed=11) - 0.5

    def value(x: Tensor) -> Tensor:
        return defense(x)[:, 0].sum()

    x = IMAGES.clone().requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, IMAGES, v, 1e-6)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-5, atol=1e-8)


def test_guidance_by_a_classifier_that_draws_is_differentiated_with_its_own_draws() -> None:
    """The backward pass repeats steps outside the call, and must know the copies of its rows."""
    guide = DiffusionClassifier(two_classes(), ClassifierConfig(levels=2))
    defense = Defense(purifier(guidance=[(1.0, ClassifierGuidance(guide))]), Linear(), copies=2)
    v = some_images(3, seed=11) - 0.5

    def value(x: Tensor) -> Tensor:
        return defense(x)[:, 0].sum()

    x = IMAGES.clone().requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, IMAGES, v, 1e-6)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_purifier_that_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^purifier: a function must be a torch\.nn\.Module"):
        Defense(lambda images: images, torch.nn.Flatten())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LikelihoodMaximizer, DiffusionPurifier])
def test_a_copy_keeps_its_changes_to_itself(kind) -> None:
    """Hooks and submodules that one of the two gets later are not the other's."""
    original, calls = kind(random_denoiser()), []
    other = original.with_gradient("bpda")
    assert other.denoiser is original.denoiser and other.noise is original.noise
    assert (other.gradient, original.gradient) == ("bpda", "exact")
    other.register_forward_hook(lambda *_: calls.append("other"))
    original.register_forward_pre_hook(lambda *_: calls.append("original"))
    images = some_images(1, (1, 8, 8))
    assert torch.equal(other(images), original(images))
    assert calls == ["other", "original"]
    other.denoiser = nn.Identity()
    other.register_buffer("own", torch.zeros(1), persistent=False)
    other.register_parameter("weight", None)
    assert isinstance(original.denoiser, Denoiser) and not hasattr(original, "own")
    assert not original._non_persistent_buffers_set and not hasattr(original, "weight")


def vote(*ballots: list[float]) -> int:
    table = torch.tensor(ballots).log()

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return table

    return int(Defense(nn.Identity(), Fixed(), copies=len(ballots)).predict(IMAGES[:1]))


def test_majority_beats_the_mean_probability() -> None:
    assert vote([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.0001, 0.9998, 0.0001]) == 0


def test_ties_go_to_the_mean_probability_of_the_tied() -> None:
    """One vote each for 1 and 2; class 0 is likely on average, but has none."""
    assert vote([0.34, 0.36, 0.3], [0.4, 0.1, 0.5]) == 2
    assert vote([0.4, 0.1, 0.5], [0.34, 0.36, 0.3]) == 2
    assert vote([0.1, 0.8, 0.1], [0.3, 0.3, 0.4]) == 1


def test_each_image_has_its_own_majority() -> None:
    defense = Defense(*parts("diffusion"), copies=5)
    images = some_images(40, seed=3)
    votes, predicted = defense.votes(images), defense.predict(images)
    for b in range(40):
        counts = votes[b].argmax(1).bincount(minlength=3)
        assert counts[predicted[b]] == counts.max()
    assert (votes.argmax(2) != votes.argmax(2)[:, :1]).any(1).sum() > 3
    assert (predicted != Defense(*parts("diffusion"))(images).argmax(1)).any()


class Centered(Guidance):
    """Pulls toward the mean of the batch."""

    batch_coupled = True

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        return x.mean(0, keepdim=True) - x


def test_coupled_modules_are_found() -> None:
    coupled = purifier(guidance=[(3.0, Centered())])
    assert batch_coupled(coupled)
    assert batch_coupled(Defense(nn.Sequential(coupled), Linear()))
    assert not batch_coupled(Defense(purifier(), Linear()))
    assert not batch_coupled(Defense(purifier(guidance=[(0.0, Centered())]), Linear()))


def test_copies_of_a_coupled_purifier_keep_to_their_own_batch() -> None:
    """Copy j of the batch is the batch purified with the draws of copy j."""
    module, classifier = purifier(guidance=[(3.0, Centered())]), Linear()
    votes = Defense(module, classifier, copies=3).votes(IMAGES)
    for j in range(3):
        with using_draws([j]):
            assert torch.equal(votes[:, j], classifier(module(IMAGES)))


def test_attack_refuses_a_coupled_model() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    coupled = Defense(purifier(guidance=[(3.0, Centered())]), Linear())
    with pytest.raises(ValueError, match="the model's answer for an image depends on the batch"):
        pgd(coupled, IMAGES, labels, eps=0.1, steps=1)


@pytest.mark.parametrize("number", [0, -1])
def test_no_copies_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"copies={number} must be at least 1"):
        Defense(nn.Identity(), Linear(), copies=number)


def test_a_batch_must_hold_all_copies() -> None:
    with using_draws(range(2)), pytest.raises(ValueError, match="3 rows cannot share 2 draws"):
        Noise("frozen").normal(IMAGES, 1)


def test_copies_end_with_their_block() -> None:
    noise = Noise("frozen", seed=2)
    plain = noise.normal(IMAGES, 2)
    with using_draws(range(3)):
        drawn = noise.normal(IMAGES, 2)
        assert drawn.shape == (3, 2, 1, 2, 2)
    assert torch.equal(drawn[:1], plain)
    assert torch.equal(noise.normal(IMAGES, 2), plain)


def test_copies_are_named_by_number() -> None:
    noise = Noise("frozen")
    with using_draws([0, 1, 7]):
        several = noise.normal(IMAGES, 2)
    with using_draws([7]):
        assert torch.equal(noise.normal(IMAGES, 2), several[2:])


def classifier(size: int = 8, channels: int = 1, classes: int = 3) -> ImageClassifier:
    return ImageClassifier(ImageClassifierConfig("cnn-4", size, channels, num_classes=classes))


def test_an_own_model_behind_a_purifier() -> None:
    """The model normalizes its images first, as in the README."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    purifier = DiffusionPurifier(tiny_denoiser(), PurifierConfig("ode", steps=1))
    defense = Defense(purifier, nn.Sequential(Normalize(0.5, 0.25), network))
    images = some_images(2, (1, 8, 8), dtype=torch.float32)
    assert torch.equal(defense(images), network((purifier(images) - 0.5) / 0.25))


@pytest.mark.parametrize("kind", [DiffusionPurifier, LikelihoodMaximizer])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (classifier(channels=3), r"it takes images \(3, 8, 8\), .* denoiser takes \(1, 8, 8\)"),
        (classifier(size=16), r"it takes images \(1, 16, 16\), .* denoiser takes \(1, 8, 8\)"),
        (classifier(classes=4), "it has 4 classes, but the purifier's .* has 3"),
    ],
)
def test_models_that_do_not_fit_are_refused(kind, model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=rf"classifier: {message}"):
        Defense(kind(tiny_denoiser()), model)
    Defense(kind(tiny_denoiser()), nn.Sequential(model))  # which nobody can look into


def test_the_diffusion_classifier_is_compared_by_its_denoiser() -> None:
    purifier = DiffusionPurifier(two_classes())
    with pytest.raises(ValueError, match=r"takes images \(1, 8, 8\), .* takes \(1, 2, 2\)"):
        Defense(purifier, DiffusionClassifier(tiny_denoiser()))


def test_a_resizing_purifier_fits_another_size() -> None:
    config = PurifierConfig("ode", steps=1, resize=True)
    defense = Defense(DiffusionPurifier(tiny_denoiser(), config), classifier(size=16))
    assert defense(some_images(2, (1, 16, 16), dtype=torch.float32)).shape == (2, 3)


def test_a_guide_of_other_classes_is_refused() -> None:
    guide = ClassifierGuidance(classifier(classes=4))
    purifier = DiffusionPurifier(tiny_denoiser(), guidance=[(1.0, guide)])
    with pytest.raises(ValueError, match="3 classes, but the purifier's ImageClassifier has 4"):
        Defense(purifier, classifier())
