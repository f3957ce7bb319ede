"""Runs beside each other: which are one method on several seeds, and in what the others differ."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_diffusion.metrics.continual_matrix import ContinualMatrix
from cl_diffusion.report.run import Run, runs_below

_SEEDS = ("seed_everything", "seed")
"""Settings of these names, wherever they stand, differ between runs of one method."""


@dataclass(frozen=True)
class Method:
    """Runs whose configurations differ in seeds alone, as far as all of them have come."""

    label: str
    runs: Sequence[Run]

    @property
    def said(self) -> str:
        """The label, and on how many seeds."""
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"

    def matrices(self, metric: str) -> list[ContinualMatrix]:
        """Of each seed, up to the last task after which all of them were measured; empty where a run lacks it."""
        every = [run.matrices[metric] for run in self.runs if metric in run.matrices]
        if len(every) < len(self.runs):
            return []
        last = min(matrix.last for matrix in every)
        kept = [{entry: value for entry, value in m.entries.items() if entry[0] <= last} for m in every]
        return [ContinualMatrix(metric, every[0].higher_is_better, entries) for entries in kept]

    def matrix(self, metric: str) -> ContinualMatrix | None:
        """The mean over seeds, of entries that all of them have; None where a run lacks the metric."""
        every = self.matrices(metric)
        if not every:
            return None
        shared = [entry for entry in every[0].entries if all(entry in matrix.entries for matrix in every)]
        means = {entry: sum(matrix.entries[entry] for matrix in every) / len(every) for entry in shared}
        return ContinualMatrix(metric, every[0].higher_is_better, means) if means else None


@dataclass(frozen=True)
class Comparison:
    """Runs by method, in the order in which they were given."""

    methods: Sequence[Method]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Comparison:
        """Of run folders, and of folders that hold runs.

        Raises:
            ValueError: none is given, or a folder holds no run, or one that cannot be read.
        """
        found = list(dict.fromkeys(run.resolve() for folder in folders for run in runs_below(folder)))
        if not found:
            raise ValueError("no run was given; expected at least one folder of a run")
        common = Path(os.path.commonpath([path.parent for path in found]))
        runs = [Run.read(path, path.relative_to(common).as_posix()) for path in found]
        groups: dict[tuple[str, int], list[Run]] = {}
        for run in runs:
            again = sum(
                _identity(other) == _identity(run) and _seed(other) == _seed(run) for other in runs[: runs.index(run)]
            )
            groups.setdefault((_identity(run), again), []).append(run)
        labels = _labels(list(groups.values()))
        return cls([Method(label, members) for label, members in zip(labels, groups.values(), strict=True)])

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for method in self.methods for run in method.runs]

    @property
    def metrics(self) -> list[str]:
        """What at least one run has measured; what is judged by images first, losses by band last."""
        order = ["class_agreement", "inception_distance", "frechet_distance", "denoising_loss"]
        named = {metric for run in self.runs for metric in run.matrices}
        return sorted(named, key=lambda name: ("/" in name, order.index(name.partition("/")[0]), name))

    @property
    def differences(self) -> dict[str, list[str | None]]:
        """By key of the configuration, the value in each method; only of keys in which they differ."""
        every = [flattened(_comparable(method.runs[0])) for method in self.methods]
        keys = list(dict.fromkeys(key for flat in every for key in flat))
        rows = {key: [flat.get(key) for flat in every] for key in keys}
        return {key: values for key, values in rows.items() if len(set(values)) > 1}

    @property
    def warnings(self) -> list[str]:
        """Why figures of these runs do not compare, where they do not."""
        said = []
        judges = {run.yardstick["reference_classifier"] for run in self.runs if "reference_classifier" in run.yardstick}
        if len(judges) > 1:
            said.append(
                f"The runs were judged by {len(judges)} different reference classifiers: their class agreements and "
                "Frechet distances do not compare."
            )
        elif len({run.yardstick["weights"] for run in self.runs if "weights" in run.yardstick}) > 1:
            said.append(
                "The runs were judged by reference classifiers of the same data and settings that were trained apart, "
                "on other machines or numbers of threads: small differences may be theirs."
            )
        twice = {(_identity(run), _seed(run)): run.name for run in self.runs}
        for run in self.runs:
            if (other := twice[_identity(run), _seed(run)]) != run.name:
                said.append(f"{run.name} and {other} have the same configuration and seed: they are no two seeds.")
        for method in self.methods:
            come = sorted({run.tasks for run in method.runs})
            if len(come) > 1:
                said.append(
                    f"The runs of {method.said} were measured after {', '.join(map(str, come))} tasks: figures are of "
                    f"what all of them have, after {come[0]}."
                )
            lacking = [m for m in self.metrics if 0 < sum(m in run.matrices for run in method.runs) < len(method.runs)]
            if lacking:
                said.append(f"Not every run of {method.said} has measured {', '.join(lacking)}: left out.")
        unfinished = [run.name for run in self.runs if run.unfinished]
        if unfinished:
            said.append(
                f"{', '.join(unfinished)}: not ended when this was written, or killed. Figures are of the tasks so far."
            )
        tasks = sorted({run.tasks for run in self.runs if run.tasks})
        if len(tasks) > 1:
            said.append(
                f"The runs were measured after {', '.join(map(str, tasks))} tasks: their averages do not compare."
            )
        return said


def flattened(configuration: Any, name: str = "") -> dict[str, str]:
    """Every value of a configuration as JSON, by its path; callbacks and the like by their class."""
    if isinstance(configuration, Mapping) and configuration:
        parts = [flattened(value, f"{name}.{key}" if name else str(key)) for key, value in configuration.items()]
    elif isinstance(configuration, list) and configuration and all(_is_class(each) for each in configuration):
        names = [_class_of(each) for each in configuration]
        numbered = [
            f"{own} {names[: i + 1].count(own)}" if names.count(own) > 1 else own for i, own in enumerate(names)
        ]
        parts = [flattened(each, f"{name}[{own}]") for own, each in zip(numbered, configuration, strict=True)]
    else:
        return {name: json.dumps(configuration, default=str)}
    return {key: value for part in parts for key, value in part.items()}


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _class_of(value: Mapping[str, Any]) -> str:
    return str(value["class_path"]).rpartition(".")[2]


def _comparable(run: Run) -> dict[str, Any]:
    """The configuration without seeds, and without the folder of the run wherever it stands."""
    folder = str(run.configuration.get("run", ""))
    return {key: _without(value, folder) for key, value in run.configuration.items() if key not in ("run", *_SEEDS)}


def _without(value: Any, folder: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(of, folder) for key, of in value.items() if key not in _SEEDS}
    if isinstance(value, list):
        return [_without(each, folder) for each in value]
    if folder and isinstance(value, str) and (value == folder or value.startswith(f"{folder}/")):
        return f"RUN{value[len(folder) :]}"
    return value


def _identity(run: Run) -> str:
    """Of one method; a run without a configuration is one by itself."""
    return json.dumps(_comparable(run), sort_keys=True, default=str) if run.configuration else str(run.folder)


def _seed(run: Run) -> str:
    """All seeds of a configuration, by their place."""
    every = flattened(run.configuration) if run.configuration else {}
    return json.dumps({key: value for key, value in every.items() if key.rpartition(".")[2] in _SEEDS})


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What the names of a group's runs have in common, without their seeds; no two the same."""
    labels = [runs[0].name if len(runs) == 1 else _common([run.name for run in runs]) for runs in groups]
    return [
        label if label and labels.count(label) == 1 else runs[0].name + (f" to {runs[-1].name}" if runs[1:] else "")
        for label, runs in zip(labels, groups, strict=True)
    ]


def _common(names: Sequence[str]) -> str:
    """The name without a seed, at its end or as a folder of its own; else the words with which all begin, if any."""
    for seed in (r"[\W_]*(seed|s)?[\W_]*\d+$", r"(^|/)(seed|s)?[\W_]*\d+(?=/)/?"):
        bare = {re.sub(seed, "", name) for name in names}
        if len(bare) == 1:
            return bare.pop()
    return re.sub(r"[\W_]*[^\W_]*$", "", os.path.commonprefix(list(names)))
