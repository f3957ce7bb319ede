"""What gradients say of an importance matrix: its shape, whose direction it has, and what is left of a linear model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cl_diffusion.metrics.alignment import Direction, alignment, held_out
from cl_diffusion.metrics.gram import Gram, relative_error
from cl_diffusion.metrics.half_samples import Estimate, Members, with_error
from cl_diffusion.metrics.stability import stability

ALL = "all"
OWN, OTHER, RELABELLED, NOISE, SURROGATE, TRUE = "own", "other", "relabelled", "noise", "surrogate", "true"
KINDS = {
    OWN: "the task's own samples",
    OTHER: "another task's, at the same weights",
    RELABELLED: "the other task's images under the task's labels",
    NOISE: "pure noise in place of images",
    SURROGATE: "the task's own, with the residual of the best linear denoiser",
    TRUE: "the task's own, with targets drawn from the model",
}
COMPARED = (OTHER, RELABELLED, NOISE)
PAIRED = (NOISE, SURROGATE, TRUE)
"""Kinds that are made of the task's own samples."""
NAMES: dict[Direction, str] = {"leading": "v", "mean": "mu"}


@dataclass(frozen=True)
class GradientAudit:
    """Inner products of the gradients of one model, and what is computed from them.

    Args:
        grams: by band, of its samples of all kinds.
        members: by band and kind, positions in the band's Gram matrix, eight or more each, for half of them are
            quartered; kinds as in ``KINDS``, ``own`` in every band, and those of ``PAIRED`` in its order. The ``own``
            of all bands are the same samples in the same order, at successive positions.
        across: of the ``own`` samples of all bands, one band after the other in ascending position; None where there is
            one.
        squares: by band, inner products of the squared entries of ``own``, in ascending position; may be empty.
        weights: by band, output-normalised weights ``a_i`` of its samples (1 where there is none); may be empty.
        law: the share of each band in the timesteps; empty where there is one band.

    Raises:
        ValueError: there are fewer than eight samples of a kind in a band, or ``own`` has gaps.
    """

    grams: Mapping[str, Gram]
    members: Mapping[str, Mapping[str, Tensor]]
    across: Gram | None = None
    squares: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    law: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for band, of in self.members.items():
            for kind, positions in of.items():
                if len(positions) < 8:
                    raise ValueError(f"band {band!r} has {len(positions)} samples of {kind!r}; expected at least 8")
            if int(of[OWN].max() - of[OWN].min()) != len(of[OWN]) - 1:
                raise ValueError(
                    f"members of 'own' in band {band!r} are not at successive positions: {of[OWN].tolist()}"
                )

    @property
    def bands(self) -> list[str]:
        """Those that there are samples of, ``"all"`` among them or not."""
        return list(self.grams)

    def estimates(self, repeats: int = 40, seed: int = 0) -> dict[str, dict[str, Estimate]]:
        """By band and name, every figure with the standard error over half samples.

        - of ``Spectrum`` (own samples): ``leading_share``, ``second_to_first``, effective ranks and the like;
          ``leading_share_held_out``: ``v^T F v / tr F`` with the direction of the other half of the samples: at most
          ``lambda_1 / tr F`` in the mean, as ``leading_share``, of the samples' own matrix, is at least that;
        - ``leading_error``, ``mean_error``, ``diagonal_error``: relative Frobenius errors of rank one along the leading
          direction and along the mean gradient that half of the samples have, and of the diagonal, without the bias of
          few samples; below 0 where sampling noise takes them there (``relative_error``);
        - ``v_itself``, ``mu_itself``: the split-half cosine of the leading direction and of the mean gradient;
          ``v_other``, ``v_relabelled``, ``v_noise``: with the other samples' (``alignment``), and ``.._corrected`` for
          sampling noise; likewise ``mu_..``; ``mu_to_v``: of the mean with the leading direction, corrected;
        - ``mu_with BAND``: the cosine of the mean gradients of two bands, corrected;
        - ``v_to_all``, ``mu_to_all``: the cosine of the band's direction with that over all timesteps, corrected, and
          ``held_of_all``: ``v^T F_all v / (v_all^T F_all v_all)``, both directions from other samples;
        - ``true_..``: of the spectrum with targets from the model; ``true_itself``; ``true_to_empirical``, corrected;
        - ``remainder_..``: of ``Stability``, the linear denoiser's direction against the model's, with the bounds
          ``held_out``; ``remainder_itself``: the split-half cosine of the linear one; ``remainder_sine``: from the
          corrected cosine of both, and with its sign where sampling noise takes that beyond 1;
        - ``trace_share``: of the traces of all bands, each weighted by its share of the timesteps, and with output
          normalisation ``iewc_trace_share``; ``iewc_..``: spectrum and alignment with output normalisation.
        """
        flat = {f"{band}/{kind}": positions for band, of in self.members.items() for kind, positions in of.items()}
        found = with_error(lambda members: self._figures(members), flat, repeats=repeats, seed=seed)
        figures: dict[str, dict[str, Estimate]] = {band: {} for band in self.bands}
        for name, estimate in found.items():
            band, _, figure = name.partition("/")
            figures[band][figure] = estimate
        return figures

    def spectra(self, leading: int = 32) -> dict[str, dict[str, list[float]]]:
        """By band and kind, own and true: ``lambda_i / trace``, the leading ones."""
        found: dict[str, dict[str, list[float]]] = {}
        for band, of in self.members.items():
            for kind in (OWN, TRUE):
                if kind in of:
                    values = self.grams[band].spectrum(of[kind]).eigenvalues
                    found.setdefault(band, {})[kind] = (values / values.sum())[:leading].tolist()
        return found

    def directions(self, band: str) -> dict[str, Tensor]:
        """Coordinates, in the band's Gram matrix, of unit directions: the leading one of each kind, and the mean."""
        gram, of = self.grams[band], self.members[band]
        found = {
            f"v, {band}" if kind == OWN else f"v of {kind}, {band}": gram.leading(positions)
            for kind, positions in of.items()
            if kind != SURROGATE
        }
        mean = gram.mean(of[OWN])
        length = gram.inner(mean, mean) ** 0.5
        return {**found, f"mu, {band}": mean / length} if length > 0 else found

    def _figures(self, members: Members) -> dict[str, float]:
        figures: dict[str, float] = {}
        for band, gram in self.grams.items():
            of = {kind: members[f"{band}/{kind}"] for kind in self.members[band]}
            found = self._of_band(band, of)
            if band in self.weights:
                tasks = {kind: positions for kind, positions in of.items() if kind in (OWN, OTHER)}
                weighted = _of_samples(gram.weighted(self.weights[band]), tasks)
                found |= {f"iewc_{name}": value for name, value in weighted.items()}
            figures |= {f"{band}/{name}": value for name, value in found.items()}
        return figures | self._beside_each_other(members) | self._trace_shares(members)

    def _of_band(self, band: str, of: Mapping[str, Tensor]) -> dict[str, float]:
        gram, own = self.grams[band], of[OWN]
        found = _of_samples(gram, of)
        if band in self.squares:
            within = own - self.members[band][OWN].min()
            found["diagonal_error"] = gram.diagonal_error(self.squares[band][within][:, within], own)
        if TRUE in of:
            found |= {f"true_{name}": value for name, value in _shape(gram, of[TRUE]).items()}
            compared = alignment(gram, own, of[TRUE], "leading", paired=True)
            found |= {"true_itself": compared.other_itself, "true_to_empirical": compared.corrected}
        if SURROGATE in of:
            both = torch.cat([own, of[SURROGATE]])
            bounds = stability(gram.products[both][:, both], held_out=True)
            found |= {f"remainder_{name}": value for name, value in bounds._asdict().items()}
            compared = alignment(gram, own, of[SURROGATE], "leading", paired=True)
            sine = relative_error(compared.corrected * abs(compared.corrected), 1)
            found |= {"remainder_itself": compared.other_itself, "remainder_sine": sine}
        return found

    def _beside_each_other(self, members: Members) -> dict[str, float]:
        """The bands' own directions, and those over all timesteps."""
        if self.across is None:
            return {}
        gram, start, own = self.across, 0, {}
        for band, of in self.members.items():
            own[band] = members[f"{band}/{OWN}"] - of[OWN].min() + start
            start += len(of[OWN])
        found: dict[str, float] = {}
        for band, positions in own.items():
            if band == ALL:
                continue
            for other, others in own.items():
                if other not in (band, ALL):
                    found[f"{band}/mu_with {other}"] = alignment(gram, positions, others, "mean", paired=True).corrected
            if ALL in own:
                for direction, name in NAMES.items():
                    compared = alignment(gram, positions, own[ALL], direction, paired=True)
                    found[f"{band}/{name}_to_all"] = compared.corrected
                found[f"{band}/held_of_all"] = _held_of(gram, positions, own[ALL])
        return found

    def _trace_shares(self, members: Members) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, weights in (("trace_share", {}), ("iewc_trace_share", self.weights)):
            if not self.law or (name != "trace_share" and not weights):
                continue
            traces: dict[str, float] = {}
            for band, share in self.law.items():
                own = members[f"{band}/{OWN}"]
                lengths = self.grams[band].products.diagonal()[own]
                traces[band] = share * float((lengths * weights[band][own] if band in weights else lengths).mean())
            whole = sum(traces.values())
            found |= {f"{band}/{name}": trace / whole if whole else math.nan for band, trace in traces.items()}
        return found


def _held_of(gram: Gram, own: Tensor, whole: Tensor) -> float:
    """``v^T F v / (v_all^T F v_all)`` with ``F`` over one half of the whole, directions from the other halves."""
    held = most = 0.0
    for one, other in ((0, 1), (1, 0)):
        rest = whole[other::2]
        held += gram.along(gram.leading(own[one::2]), rest)
        most += gram.along(gram.leading(whole[one::2]), rest)
    return held / most if most > 0 else math.nan


def _of_samples(gram: Gram, of: Mapping[str, Tensor]) -> dict[str, float]:
    """Spectrum and alignments."""
    own = of[OWN]
    found = _shape(gram, own)
    found["mu_to_v"] = alignment(gram, own, own, "mean", "leading", paired=True).corrected
    for direction, name in NAMES.items():
        found[f"{name}_itself"] = alignment(gram, own, own, direction, paired=True).itself
        for kind in COMPARED:
            if kind in of:
                compared = alignment(gram, own, of[kind], direction, paired=kind in PAIRED)
                found |= {f"{name}_{kind}_itself": compared.other_itself, f"{name}_{kind}": compared.across}
                found[f"{name}_{kind}_corrected"] = compared.corrected
    return found


def _shape(gram: Gram, members: Tensor) -> dict[str, float]:
    """Of the samples' own spectrum what needs no other samples, and of the errors what the others say."""
    spectrum = gram.spectrum(members)._asdict()
    for name in ("eigenvalues", "leading_error", "mean_error", "mean_to_leading"):
        del spectrum[name]
    leading, mean = held_out(gram, members, "leading"), held_out(gram, members, "mean")
    return {
        **spectrum,
        "leading_share_held_out": leading.share,
        "leading_error": leading.error,
        "mean_error": mean.error,
    }
