from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.fisher import LeadingEigenpairsFisher, estimate
from cl_diffusion.keys import keyed_normal
from cl_diffusion.linalg import LowRank
from tests.fisher.laws import batches, dense_gradients, dense_operator, problem, second_moment, squared_error


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv", "normed"])
@pytest.mark.parametrize("rank", [1, 3])
def test_leading_eigenpairs_are_those_of_the_dense_fisher(kind: str, rank: int) -> None:
    model, data = problem(kind)
    expected = second_moment(dense_gradients(model, data))
    operator = estimate(LeadingEigenpairsFisher(rank), model, squared_error, batches(data, 5))
    assert isinstance(operator, LowRank)
    values, vectors = torch.linalg.eigh(expected)
    torch.testing.assert_close(operator.values, values.flip(0)[:rank], rtol=1e-9, atol=0)
    best = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T
    angle = 1e-6 * values[-1] / (values[-rank] - values[-rank - 1])  # a residual of 1e-6 lambda_1 over the gap
    bound = 2**0.5 * float(values[-1] * angle)
    torch.testing.assert_close(dense_operator(operator, model), best, rtol=0, atol=bound)
    record = operator.provenance.record[0]
    assert record["relative_residual"] <= 1e-6
    if rank > 1:
        assert record["second_to_first"] == pytest.approx(float(values[-2] / values[-1]))


def test_rank_one_captures_more_than_the_mean_gradient_can() -> None:
    model, data = problem("mlp")
    g = dense_gradients(model, data)
    fisher, mu = second_moment(g), g.mean(0) / g.mean(0).norm()
    operator = estimate(LeadingEigenpairsFisher(), model, squared_error, [data])
    assert float(operator.trace()) > float(mu @ fisher @ mu)


def test_all_pairs_are_the_fisher_and_no_more_are_found_than_there_are_samples() -> None:
    model, data = problem("mlp", samples=4)
    operator = estimate(LeadingEigenpairsFisher(rank=20), model, squared_error, [data])
    assert operator.rank == 4
    expected = second_moment(dense_gradients(model, data))
    found = dense_operator(operator, model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(operator.values[0]))


def test_in_float32_products_hold_a_millionth() -> None:
    model, data = problem("conv")
    expected = second_moment(dense_gradients(model, data))
    single = tuple(t.float() if t.is_floating_point() else t for t in data)
    operator = estimate(LeadingEigenpairsFisher(rank=13), model.float(), squared_error, batches(single, 5))
    g = torch.Generator().manual_seed(0)
    probe = {n: torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}
    found = torch.cat([(operator @ probe)[n].flatten() for n in probe]).double()
    want = expected @ torch.cat([v.flatten() for v in probe.values()]).double()
    assert float((found - want).norm() / want.norm()) < 2e-6


def test_too_few_steps_warn_and_report_the_residual() -> None:
    model, data = problem("mlp")
    with pytest.warns(UserWarning, match="2 Lanczos steps leave a relative residual of .*larger max_steps"):
        operator = estimate(LeadingEigenpairsFisher(rank=2, max_steps=2), model, squared_error, [data])
    assert operator.provenance.record[0]["relative_residual"] > 1e-6


def test_every_pass_sees_the_same_draws() -> None:
    model, (x, y) = problem("mlp")

    def draw(batch: tuple[Tensor, Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
        return batch[0], batch[1] + keyed_normal(keys, (2,)).double()

    def noisy(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return squared_error(m, (batch[0], batch[1] + torch.randn_like(batch[1])))

    keyed = estimate(LeadingEigenpairsFisher(), model, squared_error, batches((x, y), 5), draw=draw)
    reseeded = estimate(LeadingEigenpairsFisher(), model, noisy, batches((x, y), 5))
    for operator in (keyed, reseeded):
        assert operator.provenance.record[0]["relative_residual"] <= 1e-6
    assert reseeded.provenance.record[0]["keyed"] is False


def test_a_loss_that_changes_from_pass_to_pass_is_refused() -> None:
    model, data = problem("mlp")
    generator = torch.Generator().manual_seed(0)

    def restless(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        noise = torch.randn(batch[1].shape, dtype=torch.float64, generator=generator)
        return squared_error(m, (batch[0], batch[1] + noise))

    with pytest.raises(ValueError, match="changes from pass to pass.*draw\\(batch, keys\\)"):
        estimate(LeadingEigenpairsFisher(), model, restless, [data])


def test_gradients_that_are_all_zero_and_settings_that_find_nothing_are_refused() -> None:
    model, data = problem("linear")
    with pytest.raises(ValueError, match="all gradients of 13 samples are zero"):
        estimate(LeadingEigenpairsFisher(), model, lambda m, b: 0 * squared_error(m, b), [data])
    with pytest.raises(ValueError, match="rank=0"):
        LeadingEigenpairsFisher(rank=0)
    with pytest.raises(ValueError, match="rank=3, max_steps=2"):
        LeadingEigenpairsFisher(rank=3, max_steps=2)
    with pytest.raises(ValueError, match="tolerance=0"):
        LeadingEigenpairsFisher(tolerance=0.0)
