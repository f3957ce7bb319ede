"""Figures of an audit on gradients whose answers are known, and in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cl_diffusion.metrics.alignment import alignment
from cl_diffusion.metrics.gradient_audit import ALL, NOISE, OTHER, OWN, RELABELLED, SURROGATE, TRUE, GradientAudit
from cl_diffusion.metrics.gram import Gram
from cl_diffusion.metrics.half_samples import Estimate
from cl_diffusion.metrics.stability import stability
from cl_diffusion.metrics.verdict import level, verdict

SIZE = 400


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def along(axis: int, samples: int, noise: float = 0.0, seed: int = 0, mean: float = 0.0) -> Tensor:
    """Gradients of length about 1 along an axis, of either sign, with noise of that length orthogonal to it."""
    g = noise / math.sqrt(SIZE) * normal(samples, SIZE, seed=seed)
    g[:, axis] += normal(samples, seed=seed + 1).sign() + mean
    return g


def audit(sets: dict[tuple[str, str], Tensor], **options: object) -> GradientAudit:
    grams, members, squares = {}, {}, {}
    for band in dict.fromkeys(band for band, _ in sets):
        of = {kind: g for (name, kind), g in sets.items() if name == band}
        stacked = torch.cat(list(of.values()))
        ends = [0, *torch.tensor([len(each) for each in of.values()]).cumsum(0).tolist()]
        members[band] = {kind: torch.arange(ends[i], ends[i + 1]) for i, kind in enumerate(of)}
        grams[band] = Gram(stacked @ stacked.T)
        squares[band] = of[OWN].square() @ of[OWN].square().T
    own = torch.cat([sets[band, OWN] for band in grams])
    across = Gram(own @ own.T) if len(grams) > 1 else None
    return GradientAudit(grams, members, across, squares, **options)  # type: ignore[arg-type]


def test_a_rank_one_matrix_on_one_axis_is_told_for_what_it_is() -> None:
    found = audit({(ALL, OWN): along(3, 64), (ALL, OTHER): along(3, 64, seed=5), (ALL, TRUE): normal(64, SIZE)})
    of = found.estimates(repeats=10)[ALL]
    exact = {"leading_share": 1, "second_to_first": 0, "leading_error": 0, "diagonal_error": 0, "v_itself": 1}
    for name, value in {**exact, "v_other": 1, "v_other_corrected": 1, "effective_rank_corrected": 1}.items():
        assert of[name].value == pytest.approx(value, abs=1e-6), name
        assert of[name].error == pytest.approx(0, abs=1e-6), name
    assert of["true_effective_rank_corrected"].value == pytest.approx(SIZE, rel=0.2)  # of 64 samples
    assert of["true_effective_rank"].value < 64
    [said] = verdict({ALL: of})
    assert said.startswith("all: close to rank one")
    assert "task-independent" in said
    assert "the true Fisher is flatter" in said


def test_two_orthogonal_tasks_are_two_and_noise_is_not_taken_for_a_difference() -> None:
    """The direction is planted in noise of four times its length: raw cosines fall, corrected ones stay."""
    own, same, other = (along(axis, 256, noise=4, seed=seed) for axis, seed in ((3, 0), (3, 10), (7, 20)))
    of = audit({(ALL, OWN): own, (ALL, OTHER): other, (ALL, RELABELLED): same}).estimates(repeats=20)[ALL]
    assert of["v_other"].interval[1] < 0.2
    assert of["v_relabelled"].value < 0.95
    assert of["v_relabelled"].value == pytest.approx(of["v_itself"].value, abs=0.05)
    assert of["v_relabelled_corrected"].value == pytest.approx(1, abs=0.05)
    [said] = verdict({ALL: of})
    assert "not with another task's: it is this task's" in said
    assert "labels alone make it differ more" in said


def test_a_direction_that_noise_alone_has_is_said_so_and_one_that_is_not_there_is_not_compared() -> None:
    sets = {(ALL, OWN): along(2, 128, 0.5), (ALL, OTHER): along(2, 128, 0.5, seed=9)}
    [said] = verdict(audit({**sets, (ALL, NOISE): along(2, 128, 0.5, seed=4)}).estimates())
    assert "pure noise, without any image, has the same direction" in said
    isotropic = {(ALL, OWN): normal(64, SIZE), (ALL, OTHER): normal(64, SIZE, seed=1)}
    [said] = verdict(audit(isotropic).estimates())
    assert "do not determine the leading direction" in said
    assert "task" not in said.split("leading direction")[1].split(";")[0]
    assert "mean gradient is mostly sampling noise" in said


def test_bands_are_set_beside_all_timesteps() -> None:
    low, high = along(1, 64, mean=2), 3 * along(2, 64, seed=3, mean=2)
    sets = {("low", OWN): low, ("high", OWN): high, (ALL, OWN): torch.cat([low[:32], high[:32]])}
    weights = {"low": torch.ones(64), "high": torch.full((64,), 1 / 9)}
    of = audit(sets, law={"low": 0.5, "high": 0.5}, weights=weights).estimates(repeats=10)
    assert of["low"]["trace_share"].value == pytest.approx(0.1)
    assert of["low"]["iewc_trace_share"].value == pytest.approx(0.5)
    assert of["high"]["v_to_all"].value == pytest.approx(1)
    assert (of["low"]["v_to_all"].value, of["low"]["held_of_all"].value) == pytest.approx((0, 1 / 9), abs=0.03)
    assert of["low"]["mu_with high"].value == pytest.approx(0, abs=1e-6)
    assert ALL not in {name.partition("mu_with ")[2] for name in of["low"]}


def test_what_a_linear_model_explains_is_bound_to_survive_a_small_remainder_only() -> None:
    linear = along(1, 64)
    near = linear + 0.02 * along(5, 64, seed=2)
    far = linear + 2 * along(5, 64, seed=2)
    nothing = audit({(ALL, OWN): near, (ALL, SURROGATE): 0 * linear}).estimates(repeats=5)
    assert "leaves no direction to compare" in verdict(nothing)[0]
    for g, bound in ((near, "is bound to survive"), (far, "no bound holds it")):
        of = audit({(ALL, OWN): g, (ALL, SURROGATE): linear}).estimates(repeats=20)
        [said] = verdict(of)
        assert bound in said


@pytest.mark.parametrize("dimension", [2, 40])
def test_the_noise_that_a_linear_model_shares_is_no_direction_that_survives(dimension: int) -> None:
    """The same isotropic gradients for both: whatever leads among the samples leads in both matrices."""
    for seed in range(5):
        g = normal(128, dimension, seed=seed)
        [said] = verdict(audit({(ALL, OWN): g, (ALL, SURROGATE): g}).estimates(repeats=20))
        assert "these samples do not determine a linear denoiser's direction" in said


def test_the_gap_of_few_samples_is_not_taken_for_one_of_what_they_are_drawn_from() -> None:
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(20):
        g = normal(64, 10, seed=seed)
        for held_out, found in gaps.items():
            found.append(stability(torch.cat([g, g]) @ torch.cat([g, g]).T, held_out=held_out).gap)
    assert min(gaps[False]) > 0
    assert sum(gaps[True]) / 20 < -0.3  # both of its eigenvalues are taken on the safe side


def test_a_mean_orthogonal_to_the_leading_direction_has_no_cosine_with_it_in_the_mean() -> None:
    """The noise of the mean lies along the leading direction: absolute cosines would have it for agreement."""
    squared = []
    for seed in range(60):
        g = normal(128, SIZE, seed=seed)
        g[:, 0] *= 6
        g[:, 1] += 3
        cosine = alignment(Gram(g @ g.T), torch.arange(128), torch.arange(128), "mean", "leading", paired=True)
        squared.append(math.copysign(cosine.corrected**2, cosine.corrected))
        assert cosine.across > 0
    assert sum(squared) / 60 == pytest.approx(0, abs=0.025)


def test_the_mean_keeps_its_sign_and_the_leading_direction_has_none() -> None:
    a = normal(40, 30) * 0.1
    a[:, 0] += 1
    gram = Gram(torch.cat([a, -a]) @ torch.cat([a, -a]).T)
    own, other = torch.arange(40), torch.arange(40, 80)
    assert alignment(gram, own, other, "mean").corrected == pytest.approx(-1, abs=0.02)
    assert alignment(gram, own, other, "leading").corrected == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("value", "error", "samples", "expected"),
    [
        (0.95, 0.02, 64, "high"),
        (0.3, 0.05, 64, "low"),
        (0.65, 0.05, 64, "between"),
        (0.82, 0.05, 64, "not low"),
        (0.45, 0.05, 64, "not high"),
        (0.65, 0.12, 64, "unknown"),
        (0.95, 0.3, 64, None),
        (0.95, 0.02, 16, None),
        (math.nan, 0.0, 64, None),
    ],
)
def test_nothing_is_called_high_or_low_but_with_its_whole_interval(
    value: float, error: float, samples: int, expected: str | None
) -> None:
    assert level(Estimate(value, error, samples)) == expected


def test_the_corrected_effective_rank_has_no_bias_where_the_plain_one_is_bound_by_the_samples() -> None:
    found = [Gram(g @ g.T).spectrum() for g in (normal(24, 100, seed=seed) for seed in range(60))]
    corrected = torch.tensor([1 / each.effective_rank_corrected for each in found]).mean() ** -1
    assert float(corrected) == pytest.approx(100, rel=0.05)
    assert max(each.effective_rank for each in found) < 24


def test_the_corrected_effective_rank_has_no_bias_where_lengths_differ() -> None:
    lengths = [(0.7 * normal(24, seed=seed + 500)).exp()[:, None] for seed in range(100)]
    found = [
        Gram(g @ g.T).spectrum() for g in (length * normal(24, 100, seed=seed) for seed, length in enumerate(lengths))
    ]
    corrected = torch.tensor([1 / each.effective_rank_corrected for each in found]).mean() ** -1
    assert float(corrected) == pytest.approx(100, rel=0.05)


def test_weights_are_those_of_the_weighted_matrix() -> None:
    g, a = normal(20, 6), torch.rand(20, generator=torch.Generator().manual_seed(0)).double()
    dense = torch.einsum("n,np,nq->pq", a, g, g) / 20
    found = Gram(g @ g.T).weighted(a)
    assert found.spectrum().leading_share == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1] / dense.trace()))
    fisher = g.T @ g / 20
    u = normal(20, seed=3)
    assert Gram(g @ g.T).along(u) == pytest.approx(float((g.T @ u) @ fisher @ (g.T @ u)))


@pytest.mark.parametrize("samples", [24, 60])
def test_errors_are_those_of_the_matrix_that_the_samples_are_drawn_from(samples: int) -> None:
    """Of the identity the diagonal has none, though the samples' own matrix is far from diagonal; of rank one and a
    bulk, those of a dense computation."""
    g = normal(samples, 100)
    gram = Gram(g @ g.T)
    assert gram.diagonal_error(g.square() @ g.square().T, range(samples)) < 0.45  # .9 of the samples' own matrix
    scales = torch.full((100,), 0.1, dtype=torch.float64)
    scales[0] = 1.0
    rotation = torch.linalg.qr(normal(100, 100, seed=3))[0]
    fisher = rotation * scales.square() @ rotation.T
    norm = torch.linalg.matrix_norm(fisher)
    found: dict[str, list[float]] = {}
    for seed in range(40):
        of = audit({(ALL, OWN): normal(samples, 100, seed=seed) * scales @ rotation.T}).estimates(repeats=2)[ALL]
        for name in ("leading_error", "diagonal_error", "leading_share_held_out"):
            found.setdefault(name, []).append(of[name].value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    diagonal = torch.linalg.matrix_norm(fisher - fisher.diag().diag()) / norm
    assert means["diagonal_error"] == pytest.approx(float(diagonal), abs=0.03)
    assert means["leading_share_held_out"] == pytest.approx(1 / scales.square().sum().item(), abs=0.06)
    assert means["leading_error"] < 0.5  # .1 of the best direction, and so few samples do not tell it


def test_the_error_of_a_rank_one_is_not_certain_to_be_none_where_a_second_direction_is_small() -> None:
    """``lambda_2 / lambda_1 = .04``, so that the best rank one leaves .04 of the norm."""
    errors = []
    for seed in range(30):
        g = normal(128, 2, seed=seed) * torch.tensor([1.0, 0.2], dtype=torch.float64)
        of = audit({(ALL, OWN): torch.nn.functional.pad(g, (0, SIZE - 2))}).estimates(repeats=20)[ALL]
        low, high = of["leading_error"].interval
        assert low <= 0.04 <= high
        errors.append(math.copysign(of["leading_error"].value ** 2, of["leading_error"].value))
    assert sum(errors) / 30 == pytest.approx(0.04**2, abs=0.002)


@pytest.mark.parametrize("kind", [TRUE, NOISE, "band"])
def test_what_the_same_samples_share_is_not_taken_for_a_common_direction(kind: str) -> None:
    """Gradients of own noise and of a noise that a sample has in both sets: no direction is common to the sets."""
    shared = 20 * normal(128, SIZE)
    own, other = (along(axis, 128, seed=seed, mean=2) + shared / SIZE**0.5 for axis, seed in ((3, 1), (7, 2)))
    if kind == "band":
        of = audit({("low", OWN): own, (ALL, OWN): other}).estimates(repeats=2)["low"]
        cosines = [of["v_to_all"], of["mu_to_all"]]
    else:
        of = audit({(ALL, OWN): own, (ALL, kind): other}).estimates(repeats=2)[ALL]
        cosines = [of["true_to_empirical"]] if kind == TRUE else [of["v_noise_corrected"], of["mu_noise_corrected"]]
    assert all(abs(cosine.value) < 0.25 or math.isnan(cosine.value) for cosine in cosines)
    both = torch.cat([own, other])
    gram, positions = Gram(both @ both.T), torch.arange(128)
    assert abs(alignment(gram, positions, positions + 128, "mean").corrected) > 0.5  # where that is not heeded


def test_sets_that_are_paired_are_of_one_size() -> None:
    with pytest.raises(ValueError, match="sets of 8 and 6 samples"):
        alignment(Gram(torch.eye(20)), torch.arange(8), torch.arange(8, 14), "mean", paired=True)
    with pytest.raises(ValueError, match="sets of 3 and 8 samples; expected four or more"):
        alignment(Gram(torch.eye(20)), torch.arange(3), torch.arange(8), "mean")


def test_a_mean_that_is_noise_is_not_said_to_be_the_leading_direction() -> None:
    """Gradients near rank one with mean zero: the noise of their mean lies along the leading direction."""
    g = 0.05 * normal(64, SIZE)
    g[:, 0] = normal(64, seed=2)
    g -= g.mean(0) * 0.95
    [said] = verdict(audit({(ALL, OWN): g}).estimates())
    assert "mean gradient is the leading" not in said
    assert "mean gradient is mostly sampling noise" in said or "cannot be told" in said


def test_a_mean_is_not_compared_with_a_leading_direction_that_is_not_determined() -> None:
    g = normal(128, SIZE)
    g[:, 0] += 10
    of = audit({(ALL, OWN): g}).estimates(repeats=20)[ALL]
    unknown = {**of, "v_itself": Estimate(0.9, 0.3, 128)}
    assert "the mean gradient is the leading direction" in verdict({ALL: of})[0]
    assert "there is a mean gradient beside sampling noise" in verdict({ALL: unknown})[0]
    assert "mean gradient is the leading" not in verdict({ALL: unknown})[0]


def test_a_mean_of_which_much_is_signal_is_not_called_noise() -> None:
    """Halves that agree at .43 make a whole of which .6 is signal."""
    g = normal(128, SIZE)
    g[:, 0] += math.sqrt(1.5 * SIZE / 128)
    of = audit({(ALL, OWN): g}).estimates()[ALL]
    assert of["mu_itself"].value == pytest.approx(0.43, abs=0.12)
    assert "mostly sampling noise" not in verdict({ALL: of})[0]


def test_bands_of_one_law_are_one_whatever_their_noise() -> None:
    a, b, c = (along(3, 128, noise=4, seed=seed, mean=1) for seed in (0, 10, 20))
    of = audit({("low", OWN): a, ("high", OWN): b, (ALL, OWN): c}).estimates(repeats=10)["low"]
    for name in ("v_to_all", "mu_to_all", "mu_with high", "held_of_all"):
        assert of[name].value == pytest.approx(1, abs=0.12), name


def test_the_word_of_the_linear_model_is_the_best_bound_s() -> None:
    def told(cosine: float, sine: float) -> str:
        rest = {"remainder_ratio": Estimate(0.49, 0.01, 64), "remainder_sine": Estimate(sine, 0.01, 64)}
        rest["remainder_itself"] = Estimate(0.9, 0.01, 64)
        figures = audit({(ALL, OWN): along(3, 64)}).estimates(repeats=2)[ALL]
        [said] = verdict({ALL: {**figures, **rest, "remainder_bound_cosine": Estimate(cosine, 0.01, 64)}})
        return said

    assert "bound to survive (cosine 0.99" in told(0.99, 0.04)
    assert "at sine 0.6 [0.58, 0.62], bound to a cosine of 0.77 [0.75, 0.79] or more" in told(0.77, 0.6)
    assert "no bound holds it" in told(0.0, 0.6)


def test_a_linear_direction_that_is_known_is_not_compared_with_one_that_is_not() -> None:
    of = audit({(ALL, OWN): normal(64, SIZE), (ALL, SURROGATE): along(1, 64)}).estimates(repeats=10)
    [said] = verdict(of)
    assert "a linear denoiser's direction agrees with itself (1 [1, 1]), and has none to be compared with" in said


def test_the_true_fisher_is_compared_with_the_empirical_one() -> None:
    own, true = along(3, 64, 0.1), along(3, 64, 0.1, seed=9)
    of = audit({(ALL, OWN): own, (ALL, TRUE): true}).estimates(repeats=5)[ALL]
    assert of["true_to_empirical"].value == pytest.approx(1, abs=0.01)
    of = audit({(ALL, OWN): own, (ALL, TRUE): along(8, 64, 0.1, seed=9)}).estimates(repeats=5)[ALL]
    assert of["true_to_empirical"].value < 0.1
    few = audit({(ALL, OWN): own[:16], (ALL, TRUE): normal(16, SIZE)}).estimates(repeats=5)
    assert "cannot be told from the empirical" in verdict(few)[0]


def test_gradients_that_are_zero_are_no_direction_and_no_death() -> None:
    of = audit({(ALL, OWN): torch.zeros(32, 5, dtype=torch.float64), (ALL, OTHER): normal(32, 5)}).estimates()[ALL]
    assert all(math.isnan(of[name].value) for name in ("leading_share", "v_itself", "v_other", "mu_itself"))
    assert verdict({ALL: of})[0].startswith("all: all gradients are zero; ")


def test_members_are_enough_and_at_successive_positions() -> None:
    gram, of = Gram(torch.eye(20)), torch.arange(20)
    with pytest.raises(ValueError, match="band 'all' has 7 samples of 'own'; expected at least 8"):
        GradientAudit({ALL: gram}, {ALL: {OWN: of[:7]}})
    with pytest.raises(ValueError, match="are not at successive positions"):
        GradientAudit({ALL: gram}, {ALL: {OWN: of[::2]}})


def test_a_share_of_many_eigenvalues_lies_between_the_two_that_few_samples_have() -> None:
    """A power law and gradients of very different lengths: neither is called not of rank one by the lower of them."""
    scales = torch.arange(1, 201, dtype=torch.float64) ** -1.25
    share = 1 / float(scales.square().sum())
    least, most = [], []
    for seed in range(20):
        g = normal(64, 200, seed=seed) * scales * (0.7 * normal(64, seed=seed + 99)).exp()[:, None]
        of = audit({(ALL, OWN): torch.nn.functional.pad(g, (0, 200))}).estimates(repeats=5)[ALL]
        least.append(of["leading_share_held_out"].value)
        most.append(of["leading_share"].value)
        assert "not rank one" not in verdict({ALL: of})[0]
    assert sum(least) / 20 < share < sum(most) / 20
