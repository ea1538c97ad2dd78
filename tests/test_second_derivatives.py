"""Networks whose fused kernels have no second derivative go through preflight, eigenpairs and density."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import Hessian, ModelObjective, eigenpairs, spectral_density
from tests.problems import seeded


def _goes_through(f: ModelObjective, network: nn.Module, loss: Callable[..., Tensor]) -> None:
    """``loss`` is f of the plain ``network``, called with other weights: torch alone finds the dense Hessian of it."""

    def of_theta(theta: Tensor) -> Tensor:
        weights = f.space.views(theta)
        return loss(lambda *args, **kwargs: torch.func.functional_call(network.eval(), weights, args, kwargs))

    report = f.preflight()
    assert report.passed, report
    pairs = eigenpairs(Hessian(f), 4, which="both", generator=seeded(0))
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of_theta, f.theta, vectorize=True)).numpy()
    # within the residual, 1e-3 of the largest
    np.testing.assert_allclose(pairs.values[:2], exact[::-1][:2], atol=1e-3 * abs(exact).max())
    np.testing.assert_allclose(pairs.values[2:], exact[:2], atol=1e-3 * abs(exact).max())
    density = spectral_density(Hessian(f), steps=30, probes=6, deflate=pairs, generator=seeded(1))
    trace, error = density.trace()
    assert abs(trace - exact.sum()) < 4 * error


@pytest.mark.slow
def test_a_gpt2_of_hugging_face():
    import transformers  # slow to import

    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).double()
    tokens = torch.randint(0, 11, (6, 8), generator=seeded(0))
    batches = [{"input_ids": part, "labels": part} for part in tokens.split(3)]
    f = ModelObjective(model, None, batches)
    assert "MATH kernel" in str(f.preflight())
    # the attention written out, which torch differentiates as it does anything
    plain = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").double()
    plain.load_state_dict(model.state_dict())
    _goes_through(f, plain, lambda call: call(input_ids=tokens, labels=tokens).loss)
    # the loss is convex in the logits
    v = torch.randn(f.size, generator=seeded(2), dtype=f.dtype)
    assert v @ f.gnvp(f.theta, v) > 0


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(7, 4), nn.LSTM(4, 5, num_layers=2, dropout=0.5), nn.Linear(5, 7)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens.T))[0]).permute(1, 2, 0)  # (N, classes, time)


def test_an_lstm_on_text():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Reader().double()
    text = torch.randint(0, 7, (12, 9), generator=seeded(0))
    f = ModelObjective(model, nn.CrossEntropyLoss(), (text[:, :-1], text[:, 1:]))
    _goes_through(f, model, lambda call: nn.functional.cross_entropy(call(text[:, :-1]), text[:, 1:]))


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_whose_fused_kernel_has_a_wrong_second_derivative(dim):
    g = seeded(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.utils.parametrizations.weight_norm(model[0], dim=dim)
    x, y = torch.randn(20, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (20,), generator=g)
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y))
    v, h = torch.randn(f.size, generator=g, dtype=torch.float64), 1e-6
    difference = (f.gradient(f.theta + h * v) - f.gradient(f.theta - h * v)) / (2 * h)
    # the difference is off by about h^2 |v|^3 and eps / h, both below 1e-9
    torch.testing.assert_close(f.hvp(f.theta, v), difference, rtol=0, atol=1e-8)
    assert f.preflight().passed
