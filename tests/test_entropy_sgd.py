"""Entropy-SGD against plain loops and closed forms.

Tolerances of 1e-12 and below allow float64 rounding alone: the same sums in another order.
"""

import copy
import math

import pytest
import torch
from torch import nn

from optim import EntropyAdam, EntropyOptimizer, EntropySGD
from tests.problems import DOUBLE, seeded, symmetric, tiny_mlp

SETTINGS = {
    "lr": 0.7,
    "L": 4,
    "gamma": 0.3,
    "scoping": 0.1,
    "langevin_lr": 0.2,
    "noise": 0.05,
    "averaging": 0.6,
}


def _batches(count: int):
    """A fresh linear-quadratic problem per call: f_t(x) = 1/2 (x - m_t)' H (x - m_t)."""
    hessian = symmetric([2.0, 1.0, 0.5])
    minima = torch.randn(count, 3, generator=seeded(9), dtype=DOUBLE)
    return hessian, minima


def _closure(optimizer, x, hessian, minima):
    calls = iter(minima)

    def closure():
        optimizer.zero_grad()
        d = x - next(calls)
        loss = d @ hessian @ d / 2
        loss.backward()
        return loss

    return closure


def _paper(w, minima, hessian, noise, m, outer, steps):
    """Algorithm 1 of the paper, line by line, with Nesterov momentum m on dx'."""
    batches, gamma = iter(minima), 0.3
    for _ in range(steps):
        w_prime = mu = w
        b = torch.zeros(3, dtype=DOUBLE)
        for _ in range(4):
            dw = hessian @ (w_prime - next(batches)) - gamma * (w - w_prime)
            b = m * b + dw
            xi = torch.randn(3, generator=noise, dtype=DOUBLE)
            w_prime = w_prime - 0.2 * (dw + m * b) + math.sqrt(0.2) * 0.05 * xi
            mu = (1 - 0.6) * mu + 0.6 * w_prime
        w = outer(w, w - mu)
        gamma = gamma * (1 + 0.1)
    return w


def _reference(w, minima, hessian, noise, m, outer, steps):
    """The authors' code as PAPER.md's table has it: momentum on grad f alone, alpha on the old mean."""
    batches, gamma = iter(minima), 0.3
    for _ in range(steps):
        gamma = gamma * (1 + 0.1)
        w_prime = mu = w
        b = torch.zeros(3, dtype=DOUBLE)
        for _ in range(4):
            df = hessian @ (w_prime - next(batches))
            b = m * b + df
            xi = torch.randn(3, generator=noise, dtype=DOUBLE)
            w_prime = w_prime - 0.2 * (df + m * b - gamma * (w - w_prime)) + math.sqrt(2 * 0.2) * 0.05 * xi
            mu = 0.6 * mu + (1 - 0.6) * w_prime
        w = outer(w, w - mu)
    return w


@pytest.mark.parametrize("m", [0.0, 0.9])
@pytest.mark.parametrize(("convention", "loop"), [("paper", _paper), ("reference", _reference)])
def test_steps_are_those_of_a_plain_loop(convention, loop, m):
    hessian, minima = _batches(5 * 4)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], **SETTINGS, convention=convention, langevin_momentum=m, generator=seeded(3))
    closure = _closure(optimizer, x, hessian, minima)
    for _ in range(5):
        optimizer.step(closure)
    start = torch.ones(3, dtype=DOUBLE)
    expected = loop(start, minima, hessian, seeded(3), m, lambda w, d: w - 0.7 * d, steps=5)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)


def _outer_by(make):
    """The outer step by another instance of torch's optimizer, fed x - mu by hand."""
    w = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = make([w])

    def outer(x, direction):
        with torch.no_grad():
            w.copy_(x)
        w.grad = direction
        optimizer.step()
        return w.detach().clone()

    return outer


INNER = {k: v for k, v in SETTINGS.items() if k != "lr"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda p, **inner: EntropySGD(p, 0.5, momentum=0.9, nesterov=True, **inner),
            lambda p: torch.optim.SGD(p, 0.5, momentum=0.9, nesterov=True),
        ),
        (lambda p, **inner: EntropyAdam(p, 0.1, **inner), lambda p: torch.optim.Adam(p, 0.1)),
        (
            lambda p, **inner: EntropyOptimizer(torch.optim.AdamW(p, 0.1, weight_decay=0.2), **inner),
            lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2),
        ),
        (
            lambda p, **inner: EntropyOptimizer(torch.optim.RMSprop(p, 0.1), **inner),
            lambda p: torch.optim.RMSprop(p, 0.1),
        ),
    ],
    ids=["SGD", "Adam", "AdamW", "RMSprop"],
)
def test_the_outer_step_is_that_of_any_torch_optimizer(ours, theirs):
    hessian, minima = _batches(5 * 4)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = ours([x], **INNER, generator=seeded(3))
    closure = _closure(optimizer, x, hessian, minima)
    for _ in range(5):
        optimizer.step(closure)
    start = torch.ones(3, dtype=DOUBLE)
    expected = _paper(start, minima, hessian, seeded(3), 0.0, _outer_by(theirs), steps=5)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: EntropySGD(p, 0.1, L=0), lambda p: torch.optim.SGD(p, 0.1)),
        (
            lambda p: EntropySGD(p, 0.1, L=0, momentum=0.9, nesterov=True, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        (
            lambda p: EntropySGD(p, 1e-3, L=0, maximize=True),
            lambda p: torch.optim.SGD(p, 1e-3, maximize=True),
        ),
        (
            lambda p: EntropyAdam(p, 0.01, L=0, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        ),
        (
            lambda p: EntropyOptimizer(torch.optim.AdamW(p, 0.01), L=0),
            lambda p: torch.optim.AdamW(p, 0.01),
        ),
    ],
)
def test_without_inner_steps_it_is_the_outer_optimizer_bit_for_bit(ours, theirs):
    def run(make):
        model, (x, y) = tiny_mlp()
        optimizer = make(model.parameters())
        order = seeded(5)

        def closure():
            optimizer.zero_grad()
            i = torch.randperm(50, generator=order)[:10]
            loss = nn.functional.cross_entropy(model(x[i]), y[i])
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(20)]
        return losses, [p.detach().clone() for p in model.parameters()]

    a, b = run(ours), run(theirs)
    assert a[0] == b[0]
    assert all(torch.equal(p, q) for p, q in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize(("L", "calls"), [(0, 1), (1, 1), (5, 5), (20, 20)])
def test_a_step_calls_the_closure_exactly_l_times(L, calls):  # noqa: N803
    hessian, minima = _batches(20)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], 0.1, L=L)
    inner, count = _closure(optimizer, x, hessian, minima), 0

    def closure():
        nonlocal count
        count += 1
        return inner()

    optimizer.step(closure)
    assert count == calls == optimizer.gradients_per_step


def test_scoping_advances_gamma_once_per_step():
    hessian, minima = _batches(40)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], 0.1, L=2, gamma=0.01, scoping=0.05)
    closure = _closure(optimizer, x, hessian, minima)
    for t in range(20):
        assert optimizer.param_groups[0]["gamma"] == pytest.approx(0.01 * 1.05**t, rel=1e-13)
        optimizer.step(closure)


def test_the_reference_scopes_before_its_first_step_and_the_cap_holds():
    hessian, minima = _batches(40)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD(
        [x], 0.1, L=2, gamma=0.01, scoping=0.5, gamma_max=0.04, convention="reference", diagnostics=True
    )
    closure = _closure(optimizer, x, hessian, minima)
    used = []
    for _ in range(5):
        optimizer.step(closure)
        used.append(optimizer.diagnostics["gamma"])
    assert used == pytest.approx([0.015, 0.0225, 0.03375, 0.04, 0.04])


def test_the_theorys_outer_step_has_gamma_in_it():
    hessian, minima = _batches(4)
    moves = []
    for options in ({}, {"gamma_scaled": True}):
        x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        optimizer = EntropySGD([x], 1.0, L=4, gamma=0.25, noise=0.0, **options)
        optimizer.step(_closure(optimizer, x, hessian, minima))
        moves.append(1 - x.detach())
    torch.testing.assert_close(moves[1], 0.25 * moves[0], rtol=1e-13, atol=0)


def test_maximising_f_is_minimising_minus_f():
    hessian, minima = _batches(12)

    def run(sign, maximize):
        x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        optimizer = EntropySGD([x], **SETTINGS, momentum=0.5, maximize=maximize, generator=seeded(2))
        calls = iter(minima)

        def closure():
            optimizer.zero_grad()
            d = x - next(calls)
            loss = sign * (d @ hessian @ d / 2)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return x.detach()

    torch.testing.assert_close(run(1.0, True), run(-1.0, False), rtol=1e-13, atol=0)


def test_every_group_moves_by_its_own_settings():
    hessian, minima = _batches(12)
    a, b = (torch.ones(3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    together = EntropySGD(
        [{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5, "langevin_lr": 0.3}],
        lr=0.1,
        L=3,
        noise=0.0,
    )
    calls = iter(minima)

    def closure():
        together.zero_grad()
        m = next(calls)
        loss = ((a - m) @ hessian @ (a - m) + (b - m) @ hessian @ (b - m)) / 2
        loss.backward()
        return loss

    for _ in range(4):
        together.step(closure)
    for moved, options in ((a, {"lr": 1.0}), (b, {"lr": 0.5, "langevin_lr": 0.3})):
        alone = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        optimizer = EntropySGD([alone], L=3, noise=0.0, **options)
        single = _closure(optimizer, alone, hessian, minima)
        for _ in range(4):
            optimizer.step(single)
        torch.testing.assert_close(moved, alone, rtol=1e-14, atol=0)


def test_weight_decay_is_that_of_f():
    hessian, minima = _batches(8)
    decay = 0.4

    def run(weight_decay, added):
        x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        optimizer = EntropySGD([x], **{**SETTINGS, "noise": 0.0}, weight_decay=weight_decay)
        calls = iter(minima)

        def closure():
            optimizer.zero_grad()
            d = x - next(calls)
            loss = d @ hessian @ d / 2 + added / 2 * (x @ x)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        return x.detach()

    torch.testing.assert_close(run(decay, 0.0), run(0.0, decay), rtol=1e-13, atol=1e-13)


def test_x_minus_mu_follows_the_gradient_of_the_local_entropy():
    """On a quadratic, <x'> = (H + gamma I)^-1 (H m + gamma x); a long inner loop finds it."""
    hessian, m, gamma = symmetric([2.0, 1.0, 0.5]), torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE), 0.7
    x = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    # with averaging 1, mu is the last iterate, and without noise that converges to the mean
    optimizer = EntropySGD([x], 1.0, L=300, gamma=gamma, noise=0.0, langevin_lr=0.3, averaging=1.0)
    optimizer.step(_closure(optimizer, x, hessian, m.expand(300, 3)))
    mean = torch.linalg.solve(hessian + gamma * torch.eye(3, dtype=DOUBLE), hessian @ m)
    torch.testing.assert_close(x.detach(), mean, rtol=1e-10, atol=1e-10)


def test_frozen_and_unused_parameters_stay():
    used, unused, frozen = (torch.ones(2, requires_grad=True) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = EntropySGD([used, unused, frozen], 1.0, L=3, noise=0.1, weight_decay=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum() + (frozen * used).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))
    assert torch.equal(frozen, torch.ones(2))


def test_resuming_from_a_state_dict_is_bit_exact_with_the_noise():
    hessian, minima = _batches(40)

    def fresh():
        x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        return x, EntropySGD([x], **SETTINGS, momentum=0.9, generator=seeded(1))

    x, optimizer = fresh()
    closure = _closure(optimizer, x, hessian, minima)
    for _ in range(5):
        optimizer.step(closure)
    saved, state = x.detach().clone(), copy.deepcopy(optimizer.state_dict())
    for _ in range(5):
        optimizer.step(closure)

    y, resumed = fresh()
    with torch.no_grad():
        y.copy_(saved)
    resumed.load_state_dict(state)
    closure = _closure(resumed, y, hessian, minima[20:])
    for _ in range(5):
        resumed.step(closure)
    assert torch.equal(x, y)


def test_a_deep_copy_goes_on_as_the_original():
    hessian, minima = _batches(40)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], **SETTINGS, momentum=0.9, generator=seeded(1))
    closure = _closure(optimizer, x, hessian, minima)
    for _ in range(3):
        optimizer.step(closure)
    y, copied = copy.deepcopy((x, optimizer))
    again = _closure(copied, y, hessian, minima[12:])
    for _ in range(3):
        optimizer.step(closure)
        copied.step(again)
    assert torch.equal(x, y)
    assert copied.outer.param_groups is copied.param_groups
    assert copied.outer.state is copied.state
    assert copied.generator is not optimizer.generator
    assert copied.gradients == optimizer.gradients


def test_a_copy_under_a_scheduler_moves_itself_and_not_the_original():
    hessian, minima = _batches(8)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], **SETTINGS)
    torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)  # which puts a step of its own on the optimizer
    y, copied = copy.deepcopy((x, optimizer))
    copied.step(_closure(copied, y, hessian, minima))
    assert torch.equal(x, torch.ones(3, dtype=DOUBLE))
    assert not torch.equal(y, x)


def test_learning_rate_schedulers_of_torch_drive_the_outer_step():
    hessian, minima = _batches(8)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], 1.0, L=4, noise=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    closure = _closure(optimizer, x, hessian, minima)
    optimizer.step(closure)
    scheduler.step()
    before = x.detach().clone()
    optimizer.step(closure)
    assert torch.equal(x, before)


@pytest.mark.parametrize("failure", [MemoryError(), KeyboardInterrupt(), "nan", "none"])
def test_a_step_is_all_or_nothing(failure):
    hessian, minima = _batches(8)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], **SETTINGS, generator=seeded(0))
    inner, count = _closure(optimizer, x, hessian, minima), 0

    def closure():
        nonlocal count
        count += 1
        loss = inner()
        if count == 3 and isinstance(failure, BaseException):
            raise failure
        if count == 3:
            return loss * float("nan") if failure == "nan" else None
        return loss

    expected = type(failure) if isinstance(failure, BaseException) else FloatingPointError
    noise = optimizer.generator.get_state()
    with pytest.raises(expected) as error:
        optimizer.step(closure)
    assert "in inner step 3 of 4; the weights are back at x" in error.value.__notes__[-1]
    assert torch.equal(x, torch.ones(3, dtype=DOUBLE))
    assert torch.equal(noise, optimizer.generator.get_state())
    assert optimizer.param_groups[0]["gamma"] == SETTINGS["gamma"]
    assert optimizer.gradients == 0


def test_the_default_noise_differs_from_run_to_run():
    runs = []
    for _ in range(2):
        x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        optimizer = EntropySGD([x], 1.0, L=1, noise=1.0)
        optimizer.step(_closure(optimizer, x, *_batches(1)))
        runs.append(x.detach())
    assert not torch.equal(*runs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("L", -1),
        ("L", 2.5),
        ("gamma", -1e-4),
        ("scoping", -0.1),
        ("langevin_lr", 0.0),
        ("noise", -1.0),
        ("averaging", 1.5),
        ("averaging", -0.1),
        ("langevin_momentum", 1.0),
        ("gamma_max", 1e-5),
        ("convention", "lua"),
        ("lr", -1.0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    options = {"lr": 0.1, name: value}
    message = "learning rate" if name == "lr" else f"{name}={value!r}"
    with pytest.raises(ValueError, match=message):
        EntropySGD([torch.ones(1, requires_grad=True)], **options)


def test_other_bad_input_is_named():
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = EntropySGD([x], 0.1)
    with pytest.raises(ValueError, match="closure=None"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"L=3 differs.*L=20"):
        optimizer.add_param_group({"params": [y], "L": 3})
    with pytest.raises(ValueError, match="empty parameter list"):
        EntropySGD([], 0.1)


def test_sparse_gradients_are_refused_and_nothing_moves():
    table = nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = EntropySGD(table.parameters(), 0.1)

    def closure():
        optimizer.zero_grad()
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="sparse"):
        optimizer.step(closure)
    assert torch.equal(table.weight, before)


def test_states_of_other_optimizers_and_shapes_are_refused_and_nothing_changes():
    def stepped(size, make=lambda p: EntropySGD(p, 0.1, L=1, momentum=0.9)):
        x = torch.ones(size, requires_grad=True)
        optimizer = make([x])

        def closure():
            optimizer.zero_grad()
            loss = (x**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return optimizer

    ours = stepped(3)
    before = copy.deepcopy(ours.state_dict())
    for other, message in (
        (stepped(3, lambda p: torch.optim.SGD(p, 0.1)), "not one of EntropySGD"),
        (stepped(3, lambda p: EntropyAdam(p, 0.1)), "not one of EntropySGD"),
        (stepped(4), r"momentum_buffer of shape \(4,\).*\(3,\)"),
        (EntropySGD([torch.ones(3), torch.ones(3)], 0.1), r"\[2\] parameters, the optimizer of \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(other.state_dict())
    after = ours.state_dict()
    assert torch.equal(before["generator"], after["generator"])
    assert before["param_groups"] == after["param_groups"]
