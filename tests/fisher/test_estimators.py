from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cl_diffusion.fisher import (
    BandedFisher,
    DiagonalFisher,
    FisherEstimator,
    KroneckerFisher,
    LeadingEigenpairsFisher,
    MeanGradientFisher,
    OutputLoss,
    SketchedDiagonalFisher,
    SquaredError,
    estimate,
)
from cl_diffusion.keys import KeyedBatch, keyed_normal
from cl_diffusion.linalg import LowRank, parameters
from tests.fisher.laws import batches, dense_gradients, problem, squared_error
from tests.tiny import unet

KINDS = ["linear", "mlp", "conv", "normed"]


class Alternating:
    """Two bands, by the sign of a batch's last entry."""

    def __call__(self, batch: Any) -> Tensor:
        last = batch[-1] if isinstance(batch, (tuple, list)) else batch
        return (last[:, -1] > 0).long()


EXACT: list[FisherEstimator] = [
    DiagonalFisher(),
    MeanGradientFisher(),
    LeadingEigenpairsFisher(rank=2),
    KroneckerFisher(corrected=True),
    BandedFisher(DiagonalFisher(), Alternating(), names=["negative", "positive"]),
]
EVERY: list[FisherEstimator] = [*EXACT, SketchedDiagonalFisher()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_diagonal_is_the_diagonal_of_the_dense_empirical_fisher(kind: str, chunk_size: int | None) -> None:
    model, data = problem(kind)
    g = dense_gradients(model, data)
    operator = estimate(DiagonalFisher(), model, squared_error, batches(data, 5), chunk_size=chunk_size)
    torch.testing.assert_close(parameters.flatten(operator.diagonal()), (g.T @ g / len(g)).diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_mean_gradient_is_the_best_multiple_of_the_mean_outer_product(kind: str) -> None:
    model, data = problem(kind)
    g = dense_gradients(model, data)
    fisher, mu = g.T @ g / len(g), g.mean(0)
    operator = estimate(MeanGradientFisher(), model, squared_error, batches(data, 5))
    assert isinstance(operator, LowRank)
    v = torch.cat([column.flatten() for column in operator.vectors.values()])
    torch.testing.assert_close(v, mu / mu.norm())

    def distance(c: Tensor) -> Tensor:
        return (fisher - c * torch.outer(mu, mu)).norm()

    best = operator.values[0] / mu.square().sum()
    assert distance(best) < distance(best * 1.01)
    assert distance(best) < distance(best * 0.99)
    torch.testing.assert_close(operator.values[0], v @ fisher @ v)


def test_plain_coefficient_is_the_outer_product_of_the_mean_gradient() -> None:
    model, data = problem("mlp")
    mu = dense_gradients(model, data).mean(0)
    operator = estimate(MeanGradientFisher("plain"), model, squared_error, batches(data, 4))
    torch.testing.assert_close(operator.trace(), mu.square().sum())


class Row(nn.Module):
    """A loss whose gradient of sample ``i`` is the row ``x_i``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def linear_loss(model: Row, rows: Tensor) -> Tensor:
    return rows @ model.weight


def test_on_rank_one_gradients_the_mean_gradient_is_the_fisher() -> None:
    direction = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    scales = torch.tensor([1.0, 2.0, 3.0, -1.0], dtype=torch.float64)
    operator = estimate(MeanGradientFisher(), Row(3), linear_loss, [torch.outer(scales, direction)])
    want = scales.square().mean() * torch.outer(direction, direction)
    for unit, row in zip(torch.eye(3, dtype=torch.float64), want, strict=True):
        torch.testing.assert_close((operator @ {"weight": unit})["weight"], row)


def test_sampling_noise_report_is_unbiased_on_planted_noise() -> None:
    torch.manual_seed(0)
    size, n, sigma, signal = 50, 40, 1.0, 0.1
    report = {"mean_gradient_squared": 0.0, "mean_gradient_squared_unbiased": 0.0, "covariance_trace_over_n": 0.0}
    trials = 300
    for trial in range(trials):
        rows = signal + sigma * torch.randn(n, size, dtype=torch.float64)
        operator = estimate(MeanGradientFisher("plain"), Row(size), linear_loss, [rows], seed=trial)
        for name in report:
            report[name] += operator.provenance.record[0][name] / trials
    signal_squared, noise = size * signal**2, size * sigma**2 / n
    assert report["mean_gradient_squared_unbiased"] == pytest.approx(signal_squared, abs=0.04)
    assert report["covariance_trace_over_n"] == pytest.approx(noise, abs=0.04)
    assert report["mean_gradient_squared"] == pytest.approx(signal_squared + noise, abs=0.06)


def test_pure_noise_does_not_agree_with_itself_and_a_constant_gradient_does() -> None:
    torch.manual_seed(0)
    noise = estimate(MeanGradientFisher("plain"), Row(2000), linear_loss, [torch.randn(64, 2000, dtype=torch.float64)])
    constant = estimate(MeanGradientFisher("plain"), Row(20), linear_loss, [torch.ones(64, 20, dtype=torch.float64)])
    assert abs(noise.provenance.record[0]["split_half_cosine"]) < 0.1
    assert constant.provenance.record[0]["split_half_cosine"] == pytest.approx(1.0)


def noisy_draw(rows: Tensor, keys: Tensor) -> Tensor:
    return rows + keyed_normal(keys, (rows.shape[1],)).double()


def keyed(rows: Tensor, size: int, order: Tensor) -> list[KeyedBatch]:
    return [KeyedBatch(rows[index], index) for index in order.split(size)]


@pytest.mark.parametrize("estimator", EXACT, ids=lambda estimator: estimator.name)
def test_the_estimate_does_not_depend_on_batch_size_or_order(estimator: FisherEstimator) -> None:
    rows = torch.randn(23, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = Row(6)
    forward, backward = torch.arange(23), torch.arange(23).flip(0)
    one = estimate(estimator, model, linear_loss, keyed(rows, 23, forward), draw=noisy_draw)
    other = estimate(estimator, model, linear_loss, keyed(rows, 4, backward), draw=noisy_draw)
    torch.testing.assert_close(one.diagonal(), other.diagonal(), rtol=1e-12, atol=0)
    for name, value in one.provenance.record[0].items():
        found = other.provenance.record[0][name]
        assert found == value if isinstance(value, (str, list)) else found == pytest.approx(value, rel=1e-9)
    reseeded = estimate(estimator, model, linear_loss, keyed(rows, 4, forward), draw=noisy_draw, seed=1)
    assert not torch.allclose(one.diagonal()["weight"], reseeded.diagonal()["weight"])


def test_the_coefficient_uses_fresh_draws() -> None:
    """On pure noise c* = E[(mu^T g)^2]/|mu|^4 is large on the draws that made mu; fresh ones have E = |mu|^2."""
    rows = torch.zeros(16, 500, dtype=torch.float64)
    operator = estimate(MeanGradientFisher(), Row(500), linear_loss, [rows], draw=noisy_draw)
    report = operator.provenance.record[0]
    # fresh: projections on the unit direction have variance 1; the same draws would give (|mu|^2 ~ 500/16)
    assert float(operator.values[0]) < 3.0 < report["mean_gradient_squared"]
    assert 0 < report["coefficient_standard_error"] < report["coefficient"]


def test_without_draws_the_operator_says_that_it_is_unkeyed() -> None:
    model, data = problem("linear")
    record = estimate(DiagonalFisher(), model, squared_error, batches(data, 5)).provenance.record[0]
    assert record["keyed"] is False
    assert record["samples"] == 13


def test_the_model_is_left_exactly_as_found() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model[2].eval()
    data = (torch.randn(6, 3).double(), torch.randn(6, 2).double())
    squared_error(model, data).mean().backward()
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    flags = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    for estimator in (DiagonalFisher(), MeanGradientFisher()):
        estimate(estimator, model, squared_error, [data])
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), rng)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name][0])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, before[name][1])
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


def test_frozen_parameters_are_left_out_and_tied_ones_counted_once() -> None:
    model, data = problem("mlp")
    model[0].weight.requires_grad_(False)
    operator = estimate(DiagonalFisher(), model, squared_error, [data])
    assert "0.weight" not in operator.names
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    tied[2].weight = tied[0].weight
    data = (data[0], data[0])
    operator = estimate(DiagonalFisher(), tied, squared_error, [data])
    assert operator.names == ("0.weight", "0.bias", "2.bias")
    g = dense_gradients(tied, data)
    torch.testing.assert_close(parameters.flatten(operator.diagonal()), g.square().mean(0))


@pytest.mark.parametrize("estimator", EVERY, ids=lambda estimator: estimator.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_sample_and_parameter(estimator: FisherEstimator, bad: float) -> None:
    model, (x, y) = problem("mlp")
    y[7, 1] = bad
    with pytest.raises(FloatingPointError, match="sample 7 .*'0.weight'"):
        estimate(estimator, model, squared_error, batches((x, y), 3))


@pytest.mark.parametrize("estimator", EVERY, ids=lambda estimator: estimator.name)
def test_bad_input_is_one_clear_error(estimator: FisherEstimator) -> None:
    model, data = problem("linear")
    with pytest.raises(ValueError, match="batches holds no sample"):
        estimate(estimator, model, squared_error, [])
    with pytest.raises(ValueError, match="expected .*, one entry a sample"):
        estimate(MeanGradientFisher(), model, lambda m, b: squared_error(m, b).mean(), [data])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        estimate(estimator, model, squared_error, [data])


@pytest.mark.parametrize("estimator", EVERY, ids=lambda estimator: estimator.name)
def test_a_parameter_that_the_loss_does_not_reach_has_no_importance(
    estimator: FisherEstimator,
) -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)}).double()
    data = (torch.randn(7, 3).double(), torch.randn(7, 2).double())
    operator = estimate(estimator, model, lambda m, b: squared_error(m["used"], b), [data])
    assert operator.diagonal()["unused.weight"].max() <= 1e-15 * operator.diagonal()["used.weight"].max()
    assert operator.diagonal()["used.weight"].min() > 0


def test_a_loss_that_draws_for_itself_is_estimated_reproducibly_and_marked_unkeyed() -> None:
    model, data = problem("mlp")

    def noisy(m: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return squared_error(m, (x + torch.randn_like(x), y))

    for estimator in (DiagonalFisher(), MeanGradientFisher()):
        first, second = (estimate(estimator, model, noisy, batches(data, 5)) for _ in range(2))
        torch.testing.assert_close(first.diagonal(), second.diagonal(), rtol=0, atol=0)
        other = estimate(estimator, model, noisy, batches(data, 5), seed=1)
        assert not torch.equal(first.diagonal()["0.weight"], other.diagonal()["0.weight"])
        assert first.provenance.record[0]["keyed"] is False


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_of_no_samples_is_refused(chunk_size: int) -> None:
    model, data = problem("linear")
    with pytest.raises(ValueError, match=f"chunk_size={chunk_size}"):
        estimate(DiagonalFisher(), model, squared_error, [data], chunk_size=chunk_size)


def test_two_passes_over_an_iterator_are_refused_and_one_is_fine() -> None:
    model, data = problem("linear")
    estimate(DiagonalFisher(), model, squared_error, iter([data]))
    with pytest.raises(ValueError, match="give a list or a DataLoader"):
        estimate(MeanGradientFisher(), model, squared_error, iter([data]))


def test_a_zero_mean_gradient_and_an_unknown_coefficient_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly zero"):
        estimate(MeanGradientFisher(), Row(2), linear_loss, [torch.zeros(3, 2, dtype=torch.float64)])
    with pytest.raises(ValueError, match="coefficient='best'"):
        MeanGradientFisher("best")  # type: ignore[arg-type]


def test_parameters_are_chosen_by_name() -> None:
    model, data = problem("conv")
    whole = estimate(DiagonalFisher(), model, squared_error, [data])
    chosen = estimate(DiagonalFisher(include=["conv.*", "*bias"], exclude=["norm.*"]), model, squared_error, [data])
    assert chosen.names == ("conv.weight", "conv.bias", "out.bias")
    torch.testing.assert_close(chosen.diagonal(), {n: whole.diagonal()[n] for n in chosen.names})
    assert chosen.provenance.identity["parameters"] == "conv.*, *bias but not norm.*"
    assert "parameters" not in whole.provenance.identity
    with pytest.raises(ValueError, match="none of the 7 trainable parameters .* is selected"):
        estimate(DiagonalFisher(include=["adapter*"]), model, squared_error, [data])


@pytest.mark.parametrize("estimator", EXACT, ids=lambda estimator: estimator.name)
def test_every_estimator_takes_a_part_of_the_parameters(estimator: FisherEstimator) -> None:
    model, data = problem("conv")
    for parameter in (model.conv.weight, model.norm.bias):
        parameter.requires_grad_(False)
    operator = estimate(estimator, model, squared_error, batches(data, 5))
    assert set(operator.names) == {"conv.bias", "norm.weight", "label.weight", "out.weight", "out.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offload", [False, True])
def test_the_type_of_sums_and_where_they_are_kept_change_rounding_alone(dtype: torch.dtype, offload: bool) -> None:
    model, data = problem("conv")
    exact = estimate(DiagonalFisher(), model, squared_error, batches(data, 5))
    other = estimate(DiagonalFisher(dtype=dtype, offload=offload), model, squared_error, batches(data, 5))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(other.diagonal(), exact.diagonal(), rtol=tolerance, atol=0)


def test_a_unet_with_attention_is_that_of_the_dense_gradients() -> None:
    torch.manual_seed(0)
    network = unet().double().eval()
    data = (torch.randn(5, 1, 8, 8).double(), torch.arange(5) * 150, torch.arange(5), torch.randn(5, 1, 8, 8).double())

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, t, label, y = batch
        return (model(x, t, class_labels=label).sample - y).square().flatten(1).mean(1)

    g = torch.zeros(5, sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    for row in range(5):
        one = tuple(field[row : row + 1] for field in data)
        gradients = torch.autograd.grad(loss(network, one).sum(), list(network.parameters()))
        g[row] = torch.cat([part.flatten() for part in gradients])
    close = {"rtol": 1e-8, "atol": 1e-12 * float(g.square().mean(0).max())}

    def flat(vector: dict[str, Tensor]) -> Tensor:
        return torch.cat([vector[name].flatten() for name, _ in network.named_parameters()])

    diagonal = estimate(DiagonalFisher(), network, loss, batches(data, 3))
    torch.testing.assert_close(flat(diagonal.diagonal()), g.square().mean(0), **close)
    pairs = estimate(LeadingEigenpairsFisher(rank=5), network, loss, batches(data, 3))
    torch.testing.assert_close(flat(pairs.diagonal()), g.square().mean(0), rtol=1e-5, atol=1e-5 * close["atol"] / 1e-12)
    corrected = estimate(KroneckerFisher(corrected=True), network, loss, batches(data, 3))
    torch.testing.assert_close(corrected.trace(), g.square().sum(1).mean())
    assert corrected.provenance.record[0]["kronecker_layers"] > 20


def test_sums_are_of_the_type_that_was_asked_for() -> None:
    model, data = problem("conv")
    wide, narrow = (
        estimate(DiagonalFisher(dtype=d), model, squared_error, [data]) for d in (torch.float64, torch.float32)
    )
    assert not torch.equal(wide.diagonal()["conv.weight"], narrow.diagonal()["conv.weight"])


def test_in_float32_batches_of_any_size_agree_to_a_millionth() -> None:
    """The norm of the difference over the norm; sums within a batch are in the model's own precision."""
    torch.manual_seed(0)
    network = unet()
    x, y = torch.randn(24, 1, 8, 8), torch.randn(24, 1, 8, 8)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        t, label = torch.full((len(batch[0]),), 300), torch.zeros(len(batch[0]), dtype=torch.int64)
        return (model(batch[0], t, class_labels=label).sample - batch[1]).square().flatten(1).mean(1)

    for estimator in (DiagonalFisher(), MeanGradientFisher()):
        one, other = (estimate(estimator, network, loss, batches((x, y), size)).diagonal() for size in (24, 5))
        difference = parameters.subtract(one, other)
        assert float(parameters.norm(difference) / parameters.norm(one)) < 1e-6


def test_a_compiled_part_of_the_model_is_estimated_all_the_same() -> None:
    model, data = problem("mlp")
    expected = parameters.flatten(estimate(DiagonalFisher(), model, squared_error, [data]).diagonal())
    model[0] = torch.compile(model[0], backend="eager")
    found = parameters.flatten(estimate(DiagonalFisher(), model, squared_error, [data]).diagonal())
    torch.testing.assert_close(found, expected)


def loader(data: tuple[Tensor, ...], generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data), batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("estimator", EXACT, ids=lambda estimator: estimator.name)
def test_a_loader_that_shuffles_is_passed_over_in_one_order(estimator: FisherEstimator) -> None:
    model, data = problem("mlp")
    operator = estimate(estimator, model, squared_error, loader(data))
    expected = estimate(estimator, model, squared_error, [data])
    largest = max(float(value.max()) for value in expected.diagonal().values())
    torch.testing.assert_close(operator.diagonal(), expected.diagonal(), rtol=1e-5, atol=1e-6 * largest)


def test_an_order_that_changes_from_pass_to_pass_is_named() -> None:
    model, data = problem("mlp")
    with pytest.raises(ValueError, match="batches come in another order in each pass.*KeyedBatch"):
        estimate(LeadingEigenpairsFisher(), model, squared_error, loader(data, torch.Generator().manual_seed(0)))


def test_a_loss_that_draws_for_itself_sees_one_draw_on_every_way() -> None:
    """A free parameter goes by vmap, so all of them do: half of each would be the gradient of no loss."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.scale

    model, (x, y) = Scaled().double(), problem("mlp")[1]

    def noisy(m: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return squared_error(m, (batch[0], batch[1] + torch.randn_like(batch[1])))

    operator = estimate(LeadingEigenpairsFisher(rank=3), model, noisy, batches((x, y), 5))
    assert operator.provenance.record[0]["relative_residual"] <= 1e-6


def test_an_output_of_one_number_a_sample_is_estimated() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    data = (torch.randn(7, 3).double(), torch.randn(7).double())
    loss = OutputLoss(SquaredError())
    for residual in ("empirical", "model", "expectation"):
        operator = estimate(DiagonalFisher(residual=residual), model, loss, [data])
        assert operator.provenance.identity["criterion"] == "squared error, mean over elements"
    with pytest.raises(ValueError, match=r"output has shape .*\(7,\) and target \(7, 1\); expected the same"):
        estimate(DiagonalFisher(), model, OutputLoss(SquaredError(), target=lambda m, b: b[1][:7, None]), [data])


def test_parameters_of_which_none_takes_part_have_no_importance() -> None:
    model = nn.Linear(3, 2).double()
    operator = estimate(DiagonalFisher(), model, lambda m, b: b[0].sum(1), [(torch.randn(5, 3).double(),)])
    assert float(operator.trace()) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiagonalFisher(weighting="euclidean"), "weighting='euclidean'; expected a Weighting"),
        (lambda: DiagonalFisher(dtype=torch.int64), "dtype=torch.int64; expected a floating-point"),
        (lambda: OutputLoss(nn.CrossEntropyLoss()), "expected a Criterion, such as SquaredError"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_kronecker_is_estimated_in_half_precision() -> None:
    model, data = problem("conv")
    exact = estimate(KroneckerFisher(), model, squared_error, [data])
    half = tuple(t.bfloat16() if t.is_floating_point() else t for t in data)
    operator = estimate(KroneckerFisher(), model.bfloat16(), squared_error, [half])
    assert float(operator.trace()) == pytest.approx(float(exact.trace()), rel=0.1)
