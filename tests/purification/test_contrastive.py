"""Contrastive guidance against its formulas, written out as loops over pairs of features."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purification.guidance import ContrastiveGuidance, Moment
from purification.guidance.contrastive import hard_negative_loss, initial_head
from purification.processes import Point
from rdc import vp
from rdc.images import to_x
from tests.support.guides import (
    BATCH,
    CONFIG,
    SHAPE,
    Flat,
    Smooth,
    bank,
    direction,
    given,
    moment,
    noised,
    purifier,
)
from tests.support.oracle import central_difference

SETTINGS: dict[str, Any] = {"tau": 0.7, "tau_plus": 0.15, "beta": 1.5}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def share_lost(positive: Tensor, negatives: list[Tensor], tau, tau_plus, beta) -> Tensor:
    """-log of the positive's share beside the negatives, both given as similarities."""
    values = [n.clamp(min=1e-6) for n in negatives]
    weights = [n**beta for n in values]
    mean = torch.stack(weights).mean()
    total = torch.stack([w * n for w, n in zip(weights, values, strict=True)]).sum()
    count = len(values)
    corrected = (-tau_plus * count * positive + total / mean) / (1 - tau_plus)
    rest = corrected.clamp(min=count * math.exp(-1 / tau))
    return -(positive / (positive + rest)).clamp(min=1e-6).log()


def loop_loss(u: Tensor, v: Tensor, pairs: str, tau=0.7, tau_plus=0.15, beta=1.5) -> Tensor:
    """The loss of a batch, one pair at a time."""
    batch, z = len(u), [*u, *v]
    losses = []
    for a in range(2 * batch):
        i = a % batch
        others = [b for b in range(2 * batch) if b % batch != i]
        negatives = [(cosine(z[a], z[b]) / tau).exp() for b in others]
        for j in range(batch) if pairs == "all" else [i]:
            positive = (cosine(u[i], v[j]) / tau).exp()
            losses.append(share_lost(positive, negatives, tau, tau_plus, beta))
    return torch.stack(losses).mean()


class Block(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        first, second, third = (w.clone() for w in weights)
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.third = nn.Parameter(third.T.contiguous())

    def forward(self, z: Tensor) -> Tensor:
        gate = nn.functional.silu(nn.functional.linear(z, self.first))
        inner = gate * nn.functional.linear(z, self.second)
        return z + nn.functional.linear(inner, self.third)


def module_head(weights: Tensor) -> nn.Sequential:
    return nn.Sequential(*(Block(block) for block in weights))


def batch_term(**settings) -> ContrastiveGuidance:
    return ContrastiveGuidance(Smooth(), negatives="batch", **{**SETTINGS, **settings})


@pytest.mark.parametrize("pairs", ["diagonal", "all"])
@pytest.mark.parametrize("inputs", ["state", "pixels"])
def test_batch_loss_and_gradient_are_those_of_the_loops(pairs, inputs) -> None:
    term = batch_term(pairs=pairs, inputs=inputs)
    memory = term.begin(noised(3))
    f, h = Smooth().eval(), module_head(memory[1])

    def seen(x: Tensor) -> Tensor:
        return h(f(x if inputs == "state" else (x + 1) / 2))

    x = noised(4).requires_grad_()
    loss = loop_loss(seen(noised(3)), seen(x), pairs) / moment().point.deviation
    torch.testing.assert_close(term.log_h(x, moment(), (), memory).sum(), -loss)
    expected = -torch.autograd.grad(loss, x)[0]
    got = term.increment(x.detach(), moment(), (), memory)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_pairs_differ() -> None:
    diagonal, every = (
        batch_term(pairs=pairs).increment(noised(4), moment(), (), batch_term().begin(noised(3)))
        for pairs in ("diagonal", "all")
    )
    assert torch.cosine_similarity(diagonal.flatten(), every.flatten(), 0) < 0.9


def test_bank_loss_is_that_of_the_loops() -> None:
    """An image alone: two anchors, one positive, the bank as negatives, no division by B."""
    term = ContrastiveGuidance(Smooth(), bank=bank(), **SETTINGS)
    f = Smooth().eval()
    got = term.log_h(noised(4), moment(), (), term.begin(noised(3)))
    for i in range(BATCH):
        u, v = f(noised(3))[i], f(noised(4))[i]
        positive = (cosine(u, v) / 0.7).exp()
        losses = [
            share_lost(positive, [(cosine(a, n) / 0.7).exp() for n in bank()], **SETTINGS)
            for a in (u, v)
        ]
        expected = -torch.stack(losses).mean() / moment().point.deviation
        torch.testing.assert_close(got[i], expected)


class Two(nn.Module):
    """Logits: two pixels of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


def test_two_images_with_orthonormal_features_by_hand() -> None:
    """Positives cos 1, negatives cos 0: the loss and its gradient, with an identity head."""
    term = ContrastiveGuidance(Two(), negatives="batch", tau=1.0)
    x = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 2)
    _, weights, *adam = term.begin(x)
    memory = (x, torch.zeros_like(weights), *adam)
    here = Moment(0, Point.at(0.1), None)
    rest = (2 - 0.1 * 2 * math.e) / 0.9
    loss = -math.log(math.e / (math.e + rest))
    got = term.log_h(x, here, (), memory)
    assert got.sum().item() == pytest.approx(-loss / here.point.deviation)
    # Turning v_1 = (1, 0) by an angle a: its positive has cosine cos a, of derivative 0; its four
    # negative similarities, with u_2 and v_2 in both directions, have sin a, of derivative 1. With
    # w = n and two negatives, total = 2 (n1^2 + n2^2) / (n1 + n2) has the derivative 3/2 dn1 + 3/2
    # dn2 - (dn1 + dn2) / 2 = dn1 + dn2 at n = 1. Anchor v_1 sees two of them, u_2 and v_2 one each.
    slope = (2 + 1 + 1) / 0.9 / (math.e + rest) / 4
    g = term.increment(x, here, (), memory).view(2, 2)
    expected = torch.tensor([[0.0, -slope], [-slope, 0.0]]).double() / here.point.deviation
    torch.testing.assert_close(g, expected)


def test_loss_of_similar_and_floored_pairs_by_hand() -> None:
    positive, negative = torch.tensor([[1.0], [1.0]]).double(), torch.zeros(2, 2).double()
    negative[1] = -1
    got = hard_negative_loss(positive, negative, tau=1.0, tau_plus=0.1, beta=1.0)
    p, floor = math.e, 2 / math.e
    assert (2 / math.e - 0.2 * p) / 0.9 < floor
    first = math.log(1 + (2 - 0.2 * p) / 0.9 / p)
    torch.testing.assert_close(got[:, 0], torch.tensor([first, math.log(1 + floor / p)]).double())
    worst = hard_negative_loss(-positive, -negative, tau=0.02, tau_plus=0.0, beta=1.0)
    assert worst.max().item() == pytest.approx(-math.log(1e-6))


def test_constant_features_guide_nowhere() -> None:
    for term in (
        ContrastiveGuidance(Flat(), negatives="batch"),
        ContrastiveGuidance(Flat(), bank=bank()),
    ):
        g = term.increment(noised(4), moment(), (), term.begin(noised(3)))
        assert torch.equal(g, torch.zeros_like(g))


def test_one_image_has_no_others() -> None:
    guided = purifier((1.0, batch_term()))
    with pytest.raises(ValueError, match="negatives='batch': a batch of 1 image has no others"):
        guided(given(1))
    with pytest.raises(ValueError, match="negatives='batch': a batch of 0 images has no others"):
        guided(given(1)[:0])
    assert torch.isfinite(guided(given(2))).all()


@pytest.mark.parametrize("pairs", ["diagonal", "all"])
def test_purification_is_that_of_a_plain_loop_with_torchs_adam(pairs) -> None:
    """Euler-Maruyama, the guidance of the loops and a head of modules, trained as released."""
    term = batch_term(pairs=pairs, drift_min=25, drift_max=75, seed=4)
    guided = purifier((30.0, term))
    x_in = to_x(given())
    draws = guided.noise.normal(x_in, 5)[0]
    h = module_head(initial_head(4, 4))
    adam = torch.optim.Adam(h.parameters(), lr=1e-2)
    f, points = Smooth().eval(), guided.process.points
    x = previous = points[0].scale * x_in + points[0].deviation * draws[0]
    for k in range(4):
        point, after = points[k], points[k + 1]
        score = point.score(x, guided.denoiser.denoise(x / point.scale, point.sigma))
        if 1 <= k < 3:
            leaf = x.clone().requires_grad_()
            adam.zero_grad()
            loss = loop_loss(h(f(previous)), h(f(leaf)), pairs)
            loss.backward()
            assert leaf.grad is not None
            score = score - 30 / point.deviation * leaf.grad
            adam.step()
        rate = vp.beta(torch.tensor(point.t, dtype=torch.float64)) * (point.t - after.t)
        previous, x = x, x + rate * (x / 2 + score) + rate.sqrt() * draws[1 + k]
    torch.testing.assert_close(to_x(guided(given())), x, rtol=0, atol=1e-9)


def test_first_pair_is_the_noised_image_with_itself() -> None:
    """Only v moves: not the gradient of the loss when both move."""
    term = ContrastiveGuidance(Smooth(), bank=bank())
    guided = purifier((3.0, term))
    states = guided.trajectory(given())
    first = term.increment(states[1], Moment(0, guided.process.points[0], None), (), (states[1],))
    point, after = guided.process.points[:2]
    rate = vp.beta(torch.tensor(point.t, dtype=torch.float64)) * (point.t - after.t)
    torch.testing.assert_close(states[2] - purifier().trajectory(given())[2], 3 * rate * first)


def test_steps_outside_the_window_are_left_alone() -> None:
    for term in (
        batch_term(drift_min=1, drift_max=3),
        ContrastiveGuidance(Smooth(), bank=bank(), drift_min=1, drift_max=3),
    ):
        memory = term.begin(noised(3))
        for k, inside in enumerate((False, True, True, False)):
            g = term.increment(noised(4), moment(k=k), (), memory)
            after = term.advance(noised(4), moment(k=k), (), memory)
            assert bool(g.abs().max() > 0) == inside
            assert torch.equal(after[0], noised(4)) and len(after) == len(memory)
            for old, new in zip(memory[1:], after[1:], strict=True):
                assert torch.equal(old, new) != inside


def test_a_window_that_never_opens_is_no_guidance() -> None:
    unguided = purifier()(given())
    for drift_min, opens in ((100, False), (99, True)):
        term = ContrastiveGuidance(Smooth(), bank=bank(), drift_min=drift_min)
        assert torch.equal(purifier((3.0, term))(given()), unguided) != opens


@pytest.mark.parametrize(
    ("steps", "late"),
    [(1, [0]), (2, [0, 1]), (3, [1, 2]), (10, range(4, 10)), (20, range(8, 20)),
     (100, range(40, 100)), (200, range(80, 200))],
)  # fmt: skip
def test_the_window_is_the_same_share_of_any_number_of_steps(steps: int, late) -> None:
    """The window begins at step 40 of 100, or at the step of a shorter process that includes it."""
    seen = []

    class Spy(ContrastiveGuidance):
        def log_h(self, x, moment, context, memory):
            seen.append(moment.point)
            return super().log_h(x, moment, context, memory)

    term = Spy(Smooth(), bank=bank(), drift_min=40)
    guided = purifier((3.0, term), config=replace(CONFIG, steps=steps))
    guided(given())
    assert seen == [guided.process.points[k] for k in late]


def test_surrogate_gradient_is_guided_too() -> None:
    def gradient(weight: float) -> Tensor:
        term = ContrastiveGuidance(Smooth(), bank=bank(), drift_min=39)
        config = replace(CONFIG, steps=100, surrogate_steps=5)
        x = given().requires_grad_()
        value = purifier((weight, term), config=config, gradient="surrogate")(x)
        return torch.autograd.grad((value * direction()).sum(), x)[0]

    assert (gradient(3.0) - gradient(0.0)).abs().max() > 1e-6


def test_gradient_flows_through_the_state_before() -> None:
    """The gradient flows in both modes, and not through the head, which counts as a constant."""
    for term in (batch_term(), ContrastiveGuidance(Smooth(), bank=bank())):
        v = direction()

        def value(previous: Tensor, term=term, v=v) -> Tensor:
            memory = (previous, *term.begin(noised(3))[1:])
            return (term.increment(noised(4), moment(), (), memory) * v).sum()

        previous = noised(3).requires_grad_()
        (got,) = torch.autograd.grad(value(previous), previous)
        expected = central_difference(value, noised(3), v, 1e-6)
        torch.testing.assert_close((got * v).sum(), expected, rtol=1e-6, atol=1e-9)
    term = batch_term()
    x, *head = term.begin(noised(3))
    head = [tensor.requires_grad_() for tensor in head]
    g = term.increment(noised(4).requires_grad_(), moment(), (), (x, *head))
    found = torch.autograd.grad(g.sum(), head, allow_unused=True)
    assert all(gradient is None for gradient in found)
    after = term.advance(noised(4).requires_grad_(), moment(), (), (x, *head))
    assert after[0].requires_grad and not any(tensor.requires_grad for tensor in after[1:])


def test_batch_gradient_is_that_with_the_heads_of_the_forward_pass() -> None:
    """Differentiate the same walk with each step's head fixed: no finite difference knows that."""
    guided = purifier((20.0, batch_term()))
    v = direction()
    x = given().requires_grad_()
    (got,) = torch.autograd.grad((guided(x) * v).sum(), x)
    heads = []
    term = batch_term()
    states = guided.trajectory(given())[1:]
    memory = term.begin(states[0])
    for k, state in enumerate(states[:-1]):
        heads.append(memory[1:])
        memory = term.advance(state, Moment(k, guided.process.points[k], None), (), memory)

    class Fixed(ContrastiveGuidance):
        def begin(self, x):
            return (x,)

        def increment(self, x, moment, context, memory):
            return super().increment(x, moment, context, (*memory, *heads[moment.k // 25]))

        def advance(self, x, moment, context, memory):
            return (x,)

    fixed = purifier((20.0, Fixed(Smooth(), negatives="batch", **SETTINGS)))
    assert torch.equal(fixed(given()), guided(given()))
    expected = central_difference(lambda y: (fixed(y) * v).sum(), given(), v, 1e-5)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-6, atol=1e-8)


def test_head_is_new_in_every_round_and_known_by_its_seed() -> None:
    weights = initial_head(5, 3)
    assert torch.equal(weights, initial_head(5, 3))
    assert not torch.equal(weights, initial_head(5, 4))
    for number, fan_in in enumerate((5, 5, 10)):
        spread = weights[:, number].abs().max().item() * math.sqrt(fan_in)
        assert 0.9 < spread <= 1
    term = batch_term(seed=3)
    assert torch.equal(term.begin(noised(3))[1], initial_head(4, 3))


def test_images_see_each_other_only_in_a_batch() -> None:
    """The same image beside other images: another result with "batch", the same with "bank"."""
    others = given().flip(2)
    others[0] = given()[0]
    for term, coupled in (
        (batch_term(), True),
        (ContrastiveGuidance(Smooth(), bank=bank()), False),
    ):
        guided = purifier((3.0, term), config=CONFIG)
        change = (guided(given())[0] - guided(others)[0]).abs().max()
        assert bool(change > 1e-6) == coupled == guided.batch_coupled


def test_the_smallest_tau_overflows_no_exponential() -> None:
    term = ContrastiveGuidance(Smooth(), bank=bank(), tau=2 / 88 + 1e-4, beta=1)
    same = torch.ones(2, 1)
    settings = {"tau": term.tau, "tau_plus": 0.1, "beta": term.beta}
    assert hard_negative_loss(same, same.repeat(1, 3), **settings).isfinite().all()


@pytest.mark.parametrize(
    "bad",
    [{"negatives": "others"}, {"pairs": "some"}, {"inputs": "images"}, {"tau": 0}, {"tau": 0.02},
     {"tau_plus": 1}, {"beta": -1}, {"drift_min": -1}, {"drift_min": 3, "drift_max": 3}],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"ContrastiveGuidance: {next(iter(bad))}="):
        ContrastiveGuidance(Smooth(), bank=bank(), **bad)


def test_impossible_banks_are_refused() -> None:
    wrong = (torch.ones(2, 4).long(), torch.full((2, 4), torch.nan), torch.ones(2, 4).numpy())
    for bad in (None, torch.zeros(0, 4), torch.zeros(4), *wrong):
        with pytest.raises(ValueError, match=r"bank=.*needs logits"):
            ContrastiveGuidance(Smooth(), bank=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pairs='all' must be .* with negatives='batch'"):
        ContrastiveGuidance(Smooth(), bank=bank(), pairs="all")
    other = ContrastiveGuidance(Smooth(), bank=torch.ones(2, 7))
    with pytest.raises(ValueError, match="bank: 7 logits per image, but the classifier gives 4"):
        purifier((1.0, other))(torch.zeros(1, *SHAPE).double())
