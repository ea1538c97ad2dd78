import copy
import math

import pytest
import torch
from torch import nn

from optim import EntropySGD
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


def test_steps_are_those_of_a_plain_loop():
    hessian, minima = _batches(5 * 4)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], **SETTINGS, generator=seeded(3))
    closure = _closure(optimizer, x, hessian, minima)
    for _ in range(5):
        optimizer.step(closure)

    # Algorithm 1 of the paper, line by line
    noise, batches = seeded(3), iter(minima)
    w, gamma = torch.ones(3, dtype=DOUBLE), 0.3
    for _ in range(5):
        w_prime = mu = w
        for _ in range(4):
            dw = hessian @ (w_prime - next(batches)) - gamma * (w - w_prime)
            xi = torch.randn(3, generator=noise, dtype=DOUBLE)
            w_prime = w_prime - 0.2 * dw + math.sqrt(0.2) * 0.05 * xi
            mu = (1 - 0.6) * mu + 0.6 * w_prime
        w = w - 0.7 * (w - mu)
        gamma = gamma * (1 + 0.1)
    torch.testing.assert_close(x.detach(), w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_without_inner_steps_it_is_torch_sgd_bit_for_bit(options):
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

    ours = run(lambda p: EntropySGD(p, 0.1, L=0, **options))
    theirs = run(lambda p: torch.optim.SGD(p, 0.1, **options))
    assert ours[0] == theirs[0]
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))


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


def test_an_error_in_the_closure_leaves_the_weights_at_x():
    hessian, minima = _batches(8)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    optimizer = EntropySGD([x], 1.0, L=4)
    inner, count = _closure(optimizer, x, hessian, minima), 0

    def closure():
        nonlocal count
        count += 1
        if count == 3:
            raise MemoryError
        return inner()

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert torch.equal(x, torch.ones(3, dtype=DOUBLE))


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
        ("lr", -1.0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    options = {"lr": 0.1, name: value}
    message = "learning rate" if name == "lr" else f"{name}={value}"
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
