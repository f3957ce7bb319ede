"""What an audit measures of one module at its current weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cl_diffusion.callbacks.diagnostics.audit_record import AuditRecord
from cl_diffusion.callbacks.diagnostics.audit_sources import AuditSources
from cl_diffusion.fisher import OutputLoss, OutputNormalized
from cl_diffusion.fisher.inner_products import InnerProducts, combination, inner_products
from cl_diffusion.fisher.probe import Probe, random_directions
from cl_diffusion.fisher.residual import Empirical
from cl_diffusion.fisher.samples import Samples
from cl_diffusion.linalg import Parameters, parameters
from cl_diffusion.metrics.gradient_audit import ALL, NOISE, OTHER, OWN, TRUE, GradientAudit
from cl_diffusion.metrics.gram import Gram
from cl_diffusion.metrics.half_samples import Estimate
from cl_diffusion.metrics.nonlinearity import distance_from_linear
from cl_diffusion.metrics.preservation import Damage, Preservation, Response
from cl_diffusion.processes import gathered

Directions = dict[str, Parameters]
Track = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class AuditMeasurements:
    """Gradients, steps and damage; see ``FisherAudit`` for the arguments.

    Args:
        track: shows progress.
    """

    radii: Sequence[float]
    random: int
    tau: float
    memory_budget: int
    repeats: int
    seed: int
    track: Track = field(default=lambda items, label: items)

    def audit(self, subject: AuditSources, provenance: dict[str, Any]) -> tuple[AuditRecord, Directions]:
        """What is found at the current weights, and the directions that it is about: unit vectors."""
        grams, members, squares, weights = {}, {}, {}, {}
        directions: Directions = {}
        for band in self.track(subject.names, "gradients"):
            by_kind = subject.sources(band)
            sources, kinds = list(by_kind.values()), list(by_kind)
            found = inner_products(sources, self.memory_budget, [kinds.index(OWN)])
            grams[band] = Gram(found.products)
            members[band] = {kind: self._at_random(found.members(number)) for number, kind in enumerate(kinds)}
            squares[band] = found.squares[kinds.index(OWN)]
            if isinstance(subject.loss, OutputLoss):
                weights[band] = self._weights(by_kind, found)
            coordinates = GradientAudit(grams, members).directions(band)
            for name in _wanted(band, coordinates):
                directions[name] = sources[0].to_parameters(combination(sources, found, coordinates[name]))
        across = None
        if len(subject.names) > 1:
            own = [subject.sources(band)[OWN] for band in subject.names]
            across = Gram(inner_products(own, self.memory_budget).products)
        audit = GradientAudit(grams, members, across, squares, weights, subject.law())
        record = AuditRecord(provenance, audit.estimates(self.repeats, self.seed), audit.spectra())
        record.nonlinearity = self._nonlinearity(subject)
        if self.radii and not _too_coarse(subject):
            like = dict(subject.sources(ALL)[OWN].gradients.parameters)
            probed = {**directions, **random_directions(like, self.random, self.seed)}
            for band in self.track(subject.names, "steps along directions"):
                kept = self._preservation(subject, band, probed, directions)
                record.preservation[band] = kept.estimates(self.repeats, self.seed)
                record.predictions[band] = kept.table()
        return record, directions

    def damage(
        self, subject: AuditSources, displacement: Parameters, directions: Directions
    ) -> dict[str, dict[str, Estimate]]:
        """What a displacement from the current weights does to the task, by band; nothing where there is none."""
        squared = float(parameters.inner(displacement, displacement))
        if squared == 0 or _too_coarse(subject):
            return {}
        found: dict[str, dict[str, Estimate]] = {}
        for band in self.track(subject.names, "damage along directions"):
            probe = Probe(subject.population(band), draw=1)
            along, without, held = {}, {}, {}
            for name, v in directions.items():
                direction = {key: tensor.to(displacement[key]) for key, tensor in v.items()}
                projection = float(parameters.inner(direction, displacement))
                part = parameters.scale(direction, projection)
                along[name] = probe.changes(part)
                without[name] = probe.changes(parameters.subtract(displacement, part))
                held[name] = projection**2 / squared
            slopes = probe.slopes(displacement) if self.radii else None
            damage = Damage(probe.changes(displacement), along, without, held, slopes)
            found[band] = damage.estimates(self.repeats, self.seed)
        return found

    def _weights(self, by_kind: Mapping[str, Samples], found: InnerProducts) -> Tensor:
        """Output-normalised weights of the samples of tasks; of all others 1."""
        weights = torch.ones(len(found.products), dtype=torch.float64)
        for number, (kind, samples) in enumerate(by_kind.items()):
            if kind in (OWN, OTHER):
                weights[found.members(number)] = 1 / (self._sizes(samples) + self.tau)
        return weights

    def _at_random(self, positions: Tensor) -> Tensor:
        """In a random order, the same for all sets of a size: what is halved by turns is then halved at random."""
        generator = torch.Generator().manual_seed(self.seed)
        return positions[torch.randperm(len(positions), generator=generator)]

    def _nonlinearity(self, subject: AuditSources) -> dict[str, Estimate]:
        """By band, ``(E|f - f_lin|^2 / E|f|^2)^(1/2)``; of predicted noise where the module says what that is."""
        noise = getattr(subject.module, "predicted_noise", lambda drawn, output: output)
        linear = subject.linear_output()
        if linear is None or not isinstance(subject.loss, OutputLoss):
            return {}
        found: dict[str, Estimate] = {}
        for band in subject.names:
            source = Samples(subject.population(band), Empirical())
            parts: list[Tensor] = [torch.empty(0, 2, dtype=torch.float64)]
            for drawn in source.drawn():
                output = source.terms(drawn).output
                assert output is not None
                batch = drawn.inputs.batch
                predicted, best = noise(batch, output), noise(batch, linear(subject.module, batch))
                squares = [each.double().square().flatten(1).mean(1).cpu() for each in (predicted - best, predicted)]
                parts.append(torch.stack(squares, 1))
            apart, sizes = gathered(torch.cat(parts)).unbind(1)
            found[band] = distance_from_linear(apart, sizes, repeats=self.repeats, seed=self.seed)
        return found

    def _preservation(
        self, subject: AuditSources, band: str, probed: Directions, directions: Directions
    ) -> Preservation:
        """On draws that the directions have not seen."""
        population = subject.population(band)
        probe = Probe(population, draw=1)
        length = float(parameters.norm(parameters.trainable_parameters(population.model)).detach())
        responses = {}
        for name, u in probed.items():
            lengths = [radius * length for radius in self.radii]
            steps = {
                r: (probe.changes(parameters.scale(u, r)), probe.changes(parameters.scale(u, -r))) for r in lengths
            }
            responses[name] = Response(probe.slopes(u), steps)
        sizes = self._sizes(Samples(population, Empirical()), 1) if isinstance(subject.loss, OutputLoss) else None
        rank_ones = {
            f"the rank one of {of}": {
                name: float(parameters.inner(u, directions[f"v, {of}"])) ** 2 for name, u in probed.items()
            }
            for of in dict.fromkeys((band, ALL))
        }
        return Preservation(responses, sizes, rank_ones)

    def _sizes(self, source: Samples, draw: int = 0) -> Tensor:
        """``s_i = |dl_i / df|^2``, float64, in ascending order of the samples' indices."""
        size = OutputNormalized(tau=self.tau).size
        indices, sizes = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
        for drawn in source.drawn(draw):
            indices.append(drawn.indices)
            sizes.append(size(source.terms(drawn)).double().cpu())
        return gathered(torch.cat(sizes))[gathered(torch.cat(indices)).argsort()]


def _too_coarse(subject: AuditSources) -> bool:
    """Whether the weights are so coarse that small steps are lost in their rounding."""
    dtype = next(iter(parameters.trainable_parameters(subject.module).values())).dtype
    coarse = torch.finfo(dtype).eps > 1e-6
    if coarse:
        rank_zero_warn(f"steps and damage are left out of the audit: {dtype} weights do not hold steps so small")
    return coarse


def _wanted(band: str, names: Iterable[str]) -> list[str]:
    """The leading direction of each band; over all timesteps also the mean, and what they are compared with."""
    wanted = [f"v, {band}"]
    if band == ALL:
        wanted += [f"mu, {ALL}", *(f"v of {kind}, {ALL}" for kind in (OTHER, NOISE, TRUE))]
    return [name for name in wanted if name in names]
