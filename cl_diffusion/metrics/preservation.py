"""Whether an importance matrix keeps its word: what it predicts of a step, against what the step does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_diffusion.fisher.probe import Changes, Slopes
from cl_diffusion.metrics.half_samples import Estimate, Members, with_error


@dataclass(frozen=True)
class Response:
    """Of one direction: derivatives, and changes both ways at each radius; one entry a sample throughout.

    ``steps[r]`` is ``(Changes at +r u, Changes at -r u)``.
    """

    slopes: Slopes
    steps: Mapping[float, tuple[Changes, Changes]]


@dataclass(frozen=True)
class Preservation:
    """Predictions and measurements along several directions, on the same samples.

    Args:
        responses: by direction, of unit vectors.
        sizes: ``s_i = |dl_i / df|^2``, ``(n,)``, for output normalisation; None where outputs are not known.
        approximations: by name, ``u^T A u`` for each direction, of approximations of ``F`` such as its rank one.
    """

    responses: Mapping[str, Response]
    sizes: Tensor | None = None
    approximations: Mapping[str, Mapping[str, float]] | None = None

    def estimates(self, repeats: int = 40, seed: int = 0) -> dict[str, Estimate]:
        """Figures with their standard error over half samples, named ``claim/figure/radius``.

        Claims, of a step of length ``r`` along ``u``: ``loss``, the mean over both ways, ``r^2/2 u^T GGN u``;
        ``each_loss``, the root mean square of each sample's loss change, ``r sqrt(u^T F u)``; ``output``, the mean
        squared output change, ``r^2 E|J u|^2 / d``; ``along_residual``, the squared output change along each residual,
        ``r^2 E[(g^T u)^2 / s]``. Figures:

        - ``rank_correlation``: of prediction and measurement over directions (Spearman): 1 keeps the order of all. Its
          error is over samples; that of so few directions is not in it;
        - ``ratio``: measured over predicted, the median over directions: 1 keeps its word;
        - ``each_sample/correlation``, ``each_output/correlation``: over samples, of ``r g_i^T u`` with half of what a
          sample's loss changes from ``-r u`` to ``r u``, and of ``r^2 |J_i u|^2 / d`` with its output's squared change;
          the median over directions;
        - ``loss/rank_correlation by F/r`` and by each approximation: how well that orders the mean loss change;
        - ``empirical_to_true``: ``u^T F u / u^T GGN u``, median over directions, and ``.._least``, ``.._most``.
        """
        first = next(iter(self.responses.values()))
        positions = torch.arange(len(first.slopes.loss))
        return with_error(self._figures, {"samples": positions}, repeats=repeats, seed=seed)

    def table(self) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
        """By radius, claim and direction: predicted, measured."""
        everything = torch.arange(len(next(iter(self.responses.values())).slopes.loss))
        return {f"{radius:g}": self._claims(radius, everything) for radius in self._radii()}

    def _radii(self) -> Sequence[float]:
        return list(next(iter(self.responses.values())).steps)

    def _figures(self, members: Members) -> dict[str, float]:
        chosen, found = members["samples"], {}
        for radius in self._radii():
            claims = self._claims(radius, chosen)
            for claim, by_direction in claims.items():
                predicted, measured = ([pair[side] for pair in by_direction.values()] for side in (0, 1))
                found[f"{claim}/rank_correlation/{radius:g}"] = rank_correlation(predicted, measured)
                ratios = [m / p for p, m in zip(predicted, measured, strict=True) if p > 0]
                found[f"{claim}/ratio/{radius:g}"] = _median(ratios)
            found |= self._each(radius, chosen)
            if "loss" in claims:
                measured = [pair[1] for pair in claims["loss"].values()]
                others = {"F": {u: self._empirical(u, chosen) for u in self.responses}, **(self.approximations or {})}
                for name, of in others.items():
                    correlation = rank_correlation([of[u] for u in self.responses], measured)
                    found[f"loss/rank_correlation by {name}/{radius:g}"] = correlation
        ratios = [
            self._empirical(u, chosen) / float(response.slopes.curvature[chosen].mean())
            for u, response in self.responses.items()
            if response.slopes.curvature is not None and float(response.slopes.curvature[chosen].mean()) > 0
        ]
        if ratios:
            found |= {"empirical_to_true": _median(ratios)}
            found |= {"empirical_to_true_least": min(ratios), "empirical_to_true_most": max(ratios)}
        return found

    def _each(self, radius: float, chosen: Tensor) -> dict[str, float]:
        """Whether samples are told apart by what is predicted of each."""
        losses, outputs = [], []
        for response in self.responses.values():
            forth, back = response.steps[radius]
            losses.append(_correlation(response.slopes.loss[chosen], (forth.loss - back.loss)[chosen]))
            if response.slopes.output is not None and forth.output is not None and back.output is not None:
                outputs.append(_correlation(response.slopes.output[chosen], (forth.output + back.output)[chosen]))
        found = {f"each_sample/correlation/{radius:g}": _median(losses)}
        return {**found, f"each_output/correlation/{radius:g}": _median(outputs)} if outputs else found

    def _empirical(self, direction: str, chosen: Tensor) -> float:
        return float(self.responses[direction].slopes.loss[chosen].square().mean())

    def _claims(self, radius: float, chosen: Tensor) -> dict[str, dict[str, tuple[float, float]]]:
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for name, response in self.responses.items():
            slopes, steps = response.slopes, response.steps[radius]
            squared = torch.stack([step.loss[chosen].square() for step in steps]).mean()
            pairs = {"each_loss": (radius * self._empirical(name, chosen) ** 0.5, float(squared) ** 0.5)}
            if slopes.curvature is not None and slopes.output is not None:
                change = torch.stack([step.loss[chosen] for step in steps]).mean()
                curvature = float(slopes.curvature[chosen].mean())
                pairs["loss"] = radius**2 / 2 * curvature, float(change)
                pairs["output"] = radius**2 * float(slopes.output[chosen].mean()), _mean(steps, "output", chosen)
                if self.sizes is not None:
                    normalised = slopes.loss[chosen].square() / self.sizes[chosen]
                    pairs["along_residual"] = (
                        radius**2 * float(normalised.mean()),
                        _mean(steps, "along_residual", chosen),
                    )
            for claim, pair in pairs.items():
                found.setdefault(claim, {})[name] = pair
        return found


@dataclass(frozen=True)
class Damage:
    """What the displacement ``D`` of later training does to an old task, whole and split by directions.

    Args:
        whole: of ``D``.
        along: of its part along one unit direction, by the direction's name.
        without: of the rest of it.
        held: by name, the share of ``|D|^2`` that the part has; of the direction as it was found, without an error.
        slopes: derivatives along ``D`` itself (not of unit length); None where they are not known.
    """

    whole: Changes
    along: Mapping[str, Changes]
    without: Mapping[str, Changes]
    held: Mapping[str, float]
    slopes: Slopes | None = None

    def estimates(self, repeats: int = 40, seed: int = 0) -> dict[str, Estimate]:
        """Figures with their standard error over half samples.

        ``loss``, the mean change by ``D``; ``loss_along NAME``, ``loss_without NAME``: by its parts; ``share_along
        NAME``: the first of them over the whole; ``predicted``: ``g^T D + 1/2 D^T GGN D``; ``length_along NAME``: the
        share of ``|D|^2``. And what each Fisher makes of ``D`` itself: ``each_loss``, the root mean square change of a
        sample's loss, and ``each_loss_predicted``, ``(D^T F D)^(1/2)``; ``output``, the mean squared output change, and
        ``output_predicted``, ``E|J D|^2 / d``.
        """
        positions = torch.arange(len(self.whole.loss))
        return with_error(self._figures, {"samples": positions}, repeats=repeats, seed=seed)

    def _figures(self, members: Members) -> dict[str, float]:
        chosen = members["samples"]
        whole = float(self.whole.loss[chosen].mean())
        found = {"loss": whole, "each_loss": float(self.whole.loss[chosen].square().mean()) ** 0.5}
        if self.whole.output is not None:
            found["output"] = float(self.whole.output[chosen].mean())
        if self.slopes is not None:
            found["each_loss_predicted"] = float(self.slopes.loss[chosen].square().mean()) ** 0.5
            if self.slopes.curvature is not None:
                second = self.slopes.loss[chosen] + self.slopes.curvature[chosen] / 2
                found["predicted"] = float(second.mean())
            if self.slopes.output is not None:
                found["output_predicted"] = float(self.slopes.output[chosen].mean())
        for name, along in self.along.items():
            part = float(along.loss[chosen].mean())
            found[f"loss_along {name}"] = part
            found[f"loss_without {name}"] = float(self.without[name].loss[chosen].mean())
            found[f"share_along {name}"] = part / whole if whole else math.nan
            found[f"length_along {name}"] = self.held[name]
        return found


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, in [-1, 1]; ties share their mean rank. NaN where all of one are equal."""
    return _correlation(_ranks(a), _ranks(b))


def _correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's; NaN where one is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = float(torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return float(x @ y) / size if size else math.nan


def _ranks(values: Sequence[float]) -> Tensor:
    given = torch.tensor(list(values), dtype=torch.float64)
    below = (given[None] < given[:, None]).sum(1)
    equal = (given[None] == given[:, None]).sum(1)
    return below + (equal - 1).double() / 2


def _mean(steps: tuple[Changes, Changes], name: str, chosen: Tensor) -> float:
    values: list[Tensor] = [getattr(step, name) for step in steps]
    return float(torch.stack([value[chosen] for value in values]).mean())


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
