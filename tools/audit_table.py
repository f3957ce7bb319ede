"""What several audits have found, as tables: means over them, plus or minus the standard error.

    python tools/audit_table.py runs/seed_*/audit/after_task_1/audit.json

Of one audit, its figures, plus or minus the standard error over samples; of several, each of a run of its own, over
audits. In brackets: what the samples of one of them do not support (``known`` in ``audit.json``). Sampling noise may
take corrected cosines beyond 1, and errors and cosines of eigenvectors below 0. Rank one along ``v`` or ``mu`` is along
what half of the samples have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tables import interval, table, told

SHAPE = {
    "leading_share": "lambda_1/trace",
    "leading_share_held_out": "v^T F v/trace on other samples",
    "second_to_first": "lambda_2/lambda_1",
    "effective_rank_corrected": "effective rank",
    "diagonal_error": "error of the diagonal",
    "leading_error": "of rank one along v",
    "mean_error": "of rank one along mu",
    "mu_to_v": "cos(mu, v)",
    "trace_share": "share of the trace",
    "iewc_trace_share": "the same, IEWC",
}
DIRECTION = {
    "v_itself": "v with itself",
    "v_other_corrected": "v, other task",
    "v_relabelled_corrected": "v, other task, same labels",
    "v_noise_corrected": "v, pure noise",
    "mu_itself": "mu with itself",
    "mu_other_corrected": "mu, other task",
    "mu_relabelled_corrected": "mu, other task, same labels",
    "mu_noise_corrected": "mu, pure noise",
}
OTHERS = {
    "true_leading_share_held_out": "true v^T F v/trace, on other samples",
    "true_effective_rank_corrected": "true effective rank",
    "true_to_empirical": "cos(true v, v)",
    "remainder_sine": "sine to the linear model's v",
    "remainder_ratio": "|R|/gap",
    "remainder_bound_cosine": "cosine to it that a bound makes certain",
    "iewc_leading_share_held_out": "IEWC v^T F v/trace, on other samples",
    "iewc_v_other_corrected": "IEWC v, other task",
    "held_of_all": "v^T F_all v / (v_all^T F_all v_all)",
}
PRESERVED = {
    "loss/ratio": "mean loss / GGN",
    "each_loss/ratio": "each loss / empirical",
    "output/ratio": "output / J",
    "along_residual/ratio": "along residual / IEWC",
    "each_sample/correlation": "each sample's loss, correlation",
    "loss/rank_correlation": "rank correlation of the mean loss, GGN",
    "loss/rank_correlation by F": "empirical",
}
Audit = dict[str, Any]


def cell(figures: Sequence[dict[str, Any] | None]) -> str:
    """One figure of every audit."""
    there = [figure for figure in figures if figure is not None and figure["value"] is not None]
    if not there:
        return ""
    if len(there) == 1:
        said = told(there[0]["value"], sampling_error(there[0]))
    else:
        said = interval([figure["value"] for figure in there])
    known = len(there) == len(figures) and all(figure["known"] for figure in there)
    return said if known else f"({said})"


def sampling_error(figure: dict[str, Any]) -> float | None:
    """The standard error over samples, of which an interval is 1.96 to either side."""
    if figure["high"] is None:
        return None
    error = float(figure["high"] - figure["low"]) / 2 / 1.96
    return error if error > 1e-9 else None


def bound(figures: Sequence[dict[str, Any] | None]) -> str:
    """A cosine that is certain; none where the interval of one of them reaches 0."""
    lows = [figure["low"] for figure in figures if figure is not None]
    return "none" if any(low is None or low <= 0 for low in lows) else cell(figures)


def by_band(audits: Sequence[Audit], part: str, named: dict[str, str]) -> str:
    """A row a band, a column a figure."""
    bands = list(audits[0][part])
    present = [name for name in named if any(name in audit[part][band] for audit in audits for band in bands)]
    if not present:
        return ""
    says = {name: bound if name == "remainder_bound_cosine" else cell for name in present}
    lines = [
        [band, *(says[name]([audit[part][band].get(name) for audit in audits]) for name in present)] for band in bands
    ]
    return table(["band", *(named[name] for name in present)], lines)


def preserved(audits: Sequence[Audit]) -> str:
    """A row a band and radius; radii are told as shares of the parameters' length."""
    lines = []
    for band in audits[0]["preservation"]:
        for number, share in enumerate(audits[0]["provenance"]["radii"]):
            lines.append([f"{band}, r = {share:g} |theta|"])
            for name in PRESERVED:
                lines[-1].append(cell([_at(audit["preservation"][band], name, number) for audit in audits]))
    return table(["band, step", *PRESERVED.values()], lines) if lines else ""


def _at(figures: dict[str, Any], name: str, number: int) -> dict[str, Any] | None:
    """The figure at the radius of this number: radii themselves differ with the length of the parameters."""
    radii = [key for key in figures if key.rpartition("/")[0] == name]
    found: dict[str, Any] | None = figures[radii[number]] if number < len(radii) else None
    return found


def damaged(audits: Sequence[Audit]) -> str:
    """A row a band: what later training did, and its parts along the directions over all timesteps."""
    parts = {"loss": "change of the loss", "predicted": "predicted by g and GGN"}
    parts |= {"each_loss": "of each sample's", "each_loss_predicted": "predicted by F"}
    parts |= {"output": "of the output, squared", "output_predicted": "predicted by J"}
    for name in ("v, all", "mu, all"):
        parts |= {f"loss_along {name}": f"along {name} alone", f"loss_without {name}": f"all but along {name}"}
        parts[f"length_along {name}"] = f"|D|^2 along {name}"
    there = sum(bool(audit["damage"]) for audit in audits)
    if there < len(audits):
        return f"(damage: told by {there} of {len(audits)} audits, and left out)" if there else ""
    return f"Damage to task {audits[0]['provenance']['damage']['task']}\n\n{by_band(audits, 'damage', parts)}"


def loaded(paths: Sequence[Path]) -> list[Audit]:
    """The audits, of runs of their own and as many samples of the same.

    Raises:
        ValueError: one of them is none, or they do not compare.
    """
    audits: list[Audit] = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is no file; expected audit.json as FisherAudit writes it")
        try:
            audit = json.loads(path.read_text())
            audits.append({part: audit[part] for part in ("provenance", "figures", "preservation", "damage")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no audit.json as FisherAudit writes it ({error!r})") from error
    runs = [path.resolve().parent.parent.parent for path in paths]
    if twice := [path for path, run in zip(paths, runs, strict=True) if runs.count(run) > 1]:
        raise ValueError(f"{twice[0]} and {twice[1]} are of one run; a mean over audits is one over trainings")
    audited = ("bands", "radii", "task", "other", "samples", "tau")
    by = ("samples_of_other", "kinds", "module", "weights", "epoch", "global_step", "parameters", "loss")
    for name in (*audited, *by):
        if len(found := {json.dumps(audit["provenance"].get(name)) for audit in audits}) > 1:
            raise ValueError(
                f"the audits differ in their {name}, so that they do not compare: {' and '.join(sorted(found))}"
            )
    if len(damaged := {audit["provenance"]["damage"]["task"] for audit in audits if audit["damage"]}) > 1:
        raise ValueError(f"the audits tell of damage to different tasks: {', '.join(map(str, sorted(damaged)))}")
    return audits


def main() -> None:
    """Print the tables of the given audits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audits", type=Path, nargs="+")
    try:
        audits = loaded(parser.parse_args().audits)
    except ValueError as error:
        parser.error(str(error))
    of = audits[0]["provenance"]
    beside = "" if of["other"] is None else f" beside task {of['other']}"
    several = len(audits) > 1
    whose = f"{len(audits)} audit{'s' * several} of task {of['task']}{beside}"
    over = "audits" if several else "samples"
    print(f"{whose}, {of['samples']} samples a band; plus or minus the standard error over {over};")
    print("in brackets what these samples do not support\n")
    sections: list[Callable[[], str]] = [
        lambda: by_band(audits, "figures", SHAPE),
        lambda: by_band(audits, "figures", DIRECTION),
        lambda: by_band(audits, "figures", OTHERS),
        lambda: preserved(audits),
        lambda: damaged(audits),
    ]
    print("\n\n".join(said for section in sections if (said := section())))


if __name__ == "__main__":
    main()
