"""What gradients say of an importance matrix: its shape, whose direction it has, and what is left of a linear model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cl_diffusion.metrics.alignment import Direction, alignment
from cl_diffusion.metrics.gram import Gram
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
COMPARED = {OTHER: "other", RELABELLED: "relabelled", NOISE: "noise"}
NAMES: dict[Direction, str] = {"leading": "v", "mean": "mu"}


@dataclass(frozen=True)
class GradientAudit:
    """Inner products of the gradients of one model, and what is computed from them.

    Args:
        gram: of all samples.
        members: positions of the samples of each ``(band, kind)``; kinds as in ``KINDS``, ``own`` in every band.
        squares: by band, inner products of the squared entries of ``own``, in its order; may be empty.
        weights: output-normalised weights ``a_i`` of all samples (1 where there is none); None leaves them out.
        law: the share of each band in the timesteps; empty where there is one band.
    """

    gram: Gram
    members: Mapping[tuple[str, str], Tensor]
    squares: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    law: Mapping[str, float] = field(default_factory=dict)

    @property
    def bands(self) -> list[str]:
        """Those that there are samples of, ``"all"`` among them or not."""
        return list(dict.fromkeys(band for band, _ in self.members))

    def estimates(self, repeats: int = 40, seed: int = 0) -> dict[str, dict[str, Estimate]]:
        """By band and name, every figure with the standard error over half samples.

        - of ``Spectrum`` (own samples), and ``diagonal_error``;
        - ``v_itself``, ``mu_itself``: the split-half cosine of the leading direction and of the mean gradient;
          ``v_other``, ``v_relabelled``, ``v_noise``: with the other samples' (``alignment``), and ``.._corrected`` for
          sampling noise; likewise ``mu_..``;
        - ``mu_with BAND``: the cosine of the mean gradients of two bands, all samples of both;
        - ``v_to_all``, ``mu_to_all``: the cosine of the band's direction with that over all timesteps, and
          ``held_of_all``: ``v^T F_all v / lambda_1(F_all)``;
        - ``true_..``: of the spectrum with targets from the model; ``true_itself``; ``true_to_empirical``, corrected;
        - ``remainder_..``: of ``Stability``, the linear denoiser's direction against the model's;
        - ``trace_share``: of the trace over all timesteps, and with output normalisation ``iewc_trace_share``;
          ``iewc_..``: spectrum and alignment with output normalisation.
        """
        flat = {f"{band}/{kind}": positions for (band, kind), positions in self.members.items()}
        found = with_error(lambda members: self._figures(members), flat, repeats=repeats, seed=seed)
        figures: dict[str, dict[str, Estimate]] = {band: {} for band in self.bands}
        for name, estimate in found.items():
            band, _, figure = name.partition("/")
            figures[band][figure] = estimate
        return figures

    def spectra(self, leading: int = 32) -> dict[str, dict[str, list[float]]]:
        """By band and kind, own and true: ``lambda_i / trace``, the leading ones."""
        found: dict[str, dict[str, list[float]]] = {}
        for (band, kind), positions in self.members.items():
            if kind in (OWN, TRUE):
                values = self.gram.spectrum(positions).eigenvalues
                found.setdefault(band, {})[kind] = (values / values.sum())[:leading].tolist()
        return found

    def directions(self) -> dict[str, Tensor]:
        """Coordinates of the unit directions that there are: the leading one of each band and kind, and the means."""
        found: dict[str, Tensor] = {}
        for (band, kind), positions in self.members.items():
            if kind == SURROGATE:
                continue
            found[f"v, {band}" if kind == OWN else f"v of {kind}, {band}"] = self.gram.leading(positions)
            if kind == OWN:
                mean = self.gram.mean(positions)
                length = self.gram.inner(mean, mean) ** 0.5
                if length > 0:
                    found[f"mu, {band}"] = mean / length
        return found

    def _figures(self, members: Members) -> dict[str, float]:
        figures: dict[str, float] = {}
        for band in self.bands:
            of = {kind: members[f"{band}/{kind}"] for kind in KINDS if f"{band}/{kind}" in members}
            found = self._of_band(band, of)
            if self.weights is not None:
                weighted = GradientAudit(self.gram.weighted(self.weights), {})
                tasks = {kind: positions for kind, positions in of.items() if kind in (OWN, OTHER)}
                found |= {f"iewc_{name}": value for name, value in weighted._of_samples(tasks).items()}
            if band != ALL and f"{ALL}/{OWN}" in members:
                found |= self._beside_all(of[OWN], members[f"{ALL}/{OWN}"])
            for other in self.bands:
                if other not in (band, ALL):
                    mean = self.gram.mean(members[f"{other}/{OWN}"])
                    found[f"mu_with {other}"] = self.gram.cosine(self.gram.mean(of[OWN]), mean)
            figures |= {f"{band}/{name}": value for name, value in found.items()}
        return figures | self._trace_shares(members)

    def _of_band(self, band: str, of: Mapping[str, Tensor]) -> dict[str, float]:
        own = of[OWN]
        found = self._of_samples(of)
        if band in self.squares:
            within = own - self.members[band, OWN][0]
            found["diagonal_error"] = self.gram.diagonal_error(self.squares[band][within][:, within], own)
        if TRUE in of:
            found |= {f"true_{name}": value for name, value in _shape(self.gram, of[TRUE]).items()}
            compared = alignment(self.gram, own, of[TRUE], "leading")
            found |= {"true_itself": compared.other_itself, "true_to_empirical": compared.corrected}
        if SURROGATE in of:
            both = torch.cat([own, of[SURROGATE]])
            remainder = stability(self.gram.products[both][:, both])
            found |= {f"remainder_{name}": value for name, value in remainder._asdict().items()}
        return found

    def _of_samples(self, of: Mapping[str, Tensor]) -> dict[str, float]:
        """Spectrum and alignments."""
        found = _shape(self.gram, of[OWN])
        for direction, name in NAMES.items():
            for kind in COMPARED:
                if kind not in of:
                    continue
                compared = alignment(self.gram, of[OWN], of[kind], direction)
                found |= {f"{name}_itself": compared.itself, f"{name}_{kind}_itself": compared.other_itself}
                found |= {f"{name}_{kind}": compared.across, f"{name}_{kind}_corrected": compared.corrected}
            if f"{name}_itself" not in found:
                found[f"{name}_itself"] = alignment(self.gram, of[OWN], of[OWN], direction).itself
        return found

    def _beside_all(self, own: Tensor, whole: Tensor) -> dict[str, float]:
        v, v_all = self.gram.leading(own), self.gram.leading(whole)
        return {
            "v_to_all": abs(self.gram.cosine(v, v_all)),
            "mu_to_all": self.gram.cosine(self.gram.mean(own), self.gram.mean(whole)),
            "held_of_all": self.gram.along(v, whole) / self.gram.along(v_all, whole),
        }

    def _trace_shares(self, members: Members) -> dict[str, float]:
        if not self.law:
            return {}
        squared = self.gram.products.diagonal()
        found: dict[str, float] = {}
        for name, weights in (("trace_share", None), ("iewc_trace_share", self.weights)):
            if name != "trace_share" and weights is None:
                continue
            lengths = squared if weights is None else squared * weights
            traces = {band: share * float(lengths[members[f"{band}/{OWN}"]].mean()) for band, share in self.law.items()}
            whole = sum(traces.values())
            found |= {f"{band}/{name}": trace / whole if whole else math.nan for band, trace in traces.items()}
        return found


def _shape(gram: Gram, members: Tensor) -> dict[str, float]:
    spectrum = gram.spectrum(members)._asdict()
    del spectrum["eigenvalues"]
    return spectrum
