"""Which runs a published comparison consists of, and what was published of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

REPLAYS = {name: f"replay/{name}" for name in ("buffer", "generative_replay", "distillation")}
PENALTIES = {
    "diagonal": "method/ewc_diagonal",
    "rank1": "method/ewc_rank1",
    "rank1_plain": "method/ewc_rank1_plain",
    "eigenpair": "method/ewc_eigenpair",
    "rank_k": "method/ewc_rank_k",
    "kronecker": "method/ewc_kronecker",
    "banded": "method/ewc_banded",
    "true_diagonal": "method/ewc_true_diagonal",
    "true_eigenpair": "method/ewc_true_eigenpair",
    "iewc_diagonal": "method/iewc_diagonal",
    "iewc_rank1": "method/iewc_rank1",
    "iewc_sliced_diagonal": "method/iewc_sliced_diagonal",
    "iewc_sliced_rank1": "method/iewc_sliced_rank1",
    "iewc_banded": "method/iewc_banded",
    **{band: f"method/ewc_{band}" for band in ("low", "mid", "high")},
    **{name: f"method/ewc_{name}" for name in ("isotropic", "random_direction", "other_task", "pure_noise")},
}
ALONE = {name: f"method/{name}" for name in ("finetune", "joint")}
PARTS = {**REPLAYS, "masip": "published/generative_distillation", **PENALTIES, **ALONE}


def parts(method: str) -> list[str]:
    """``rank1+distillation`` as ``["distillation", "rank1"]``: replay first, as the files have to be given.

    Raises:
        ValueError: an unknown part, or two of one kind.
    """
    named = method.split("+")
    if unknown := [name for name in named if name not in PARTS]:
        raise ValueError(f"{method!r}: {unknown[0]!r} is none of {', '.join(PARTS)}")
    penalties = [name for name in named if name in PENALTIES]
    alone = [name for name in named if name in ALONE]
    replays = [name for name in named if name not in (*penalties, *alone)]
    if len(penalties) > 1 or len(replays) > 1 or (alone and len(named) > 1):
        raise ValueError(
            f"{method!r}; expected one of {', '.join(ALONE)}, or a replay ({', '.join(REPLAYS)}, masip), or a penalty "
            f"({', '.join(PENALTIES)}), or one of each: rank1+distillation"
        )
    return replays + penalties + alone


@dataclass(frozen=True)
class Preset:
    """What every cell of a matrix has in common, and what is published of it.

    Args:
        configs: names below ``configs/``.
        words: further arguments of every fit.
        methods: by default these.
        files: in place of a part's own file.
        words_of: further arguments of a part.
        strengths: of a part's penalty, in place of its file's.
        error: the table is of denoising errors, not of generated images.
        matched: a strength is a multiple of the trace of the rank one over all timesteps, whatever the penalty is.
        bands: the table has the denoising losses in these bands too.
        published: of a method, the first figures of its row.
        source: of the published figures.
        note: what to know when comparing with them.
    """

    configs: Sequence[str]
    words: Sequence[str] = ()
    methods: Sequence[str] = (
        "finetune",
        "rank1",
        "distillation",
        "rank1+distillation",
        "diagonal+distillation",
        "joint",
    )
    files: Mapping[str, str] = field(default_factory=dict)
    words_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    strengths: Mapping[str, float] = field(default_factory=dict)
    error: bool = False
    matched: bool = False
    bands: Sequence[str] = ()
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)
    source: str = ""
    note: str = ""

    def files_of(self, method: str) -> list[str]:
        """All configurations of a method, in the order that they are given in."""
        return [*self.configs, *(self.files.get(part, PARTS[part]) for part in parts(method))]

    def words_for(self, method: str) -> list[str]:
        """All arguments of a method but its strength."""
        return [*self.words, *(word for part in parts(method) for word in self.words_of.get(part, ()))]

    def strength_of(self, method: str, given: float | None) -> list[str]:
        """The arguments by which a penalty has the given strength, else the preset's; none leave the file's."""
        preset = next((self.strengths[part] for part in parts(method) if part in self.strengths), None)
        strength = preset if given is None else given
        if strength is None:
            return []
        option = "--trainer.callbacks.strength"
        if not self.matched:
            return [f"{option}={strength}"]
        reference = f"{option}.reference=cl_diffusion.fisher.MeanGradientFisher"
        return [f"{option}=cl_diffusion.callbacks.TraceMatched", f"{option}.multiple={strength}", reference]


def has_penalty(method: str) -> bool:
    """Whether a strength takes part."""
    return any(part in PENALTIES for part in parts(method))


_EMPIRICAL = ("diagonal", "rank1", "rank1_plain", "eigenpair", "rank_k", "kronecker", "banded")
_RANK1_METHODS = (
    "joint",
    "finetune",
    "diagonal",
    "rank1",
    "distillation",
    "diagonal+distillation",
    "rank1+distillation",
)
_RANK1_ROWS = {
    "mnist": ((2.6,), (102.6, 93.7), (62.2, 51.1), (65.2, 58.3), (10.1, 2.3), (14.3, 5.2), (7.6, 0.6)),
    "fashion_mnist": ((5.7,), (104.0, 88.0), (99.9, 81.7), (96.9, 82.1), (19.1, 3.9), (27.7, 9.1), (15.4, 0.9)),
    "cifar10": ((23.3,), (115.4, 72.5), (128.6, 74.4), (120.0, 77.4), (61.2, 16.6), (72.6, 17.9), (50.5, 7.4)),
}
_DIRECTIONS = (
    "rank1",
    "low",
    "mid",
    "high",
    "banded",
    "iewc_rank1",
    "iewc_banded",
    "diagonal",
    "true_eigenpair",
    "isotropic",
    "random_direction",
    "other_task",
    "pure_noise",
)
_COLOUR = ("--model.network.init_args.in_channels=3", "--model.network.init_args.out_channels=3")


def _rank1(dataset: str, version: str) -> Preset:
    """2509.23593 as its text (``paper``) or its published code has it."""
    settings = f"published/rank1_{version}"
    return Preset(
        configs=("base", f"data/{dataset}", "model/unet_32x32", settings, "hardware/gpu"),
        words=_COLOUR if dataset == "cifar10" else (),
        methods=_RANK1_METHODS,
        files={"distillation": f"{settings}_distillation"},
        strengths=dict.fromkeys(_EMPIRICAL, 1e4) if version == "code" else {},
        words_of={"generative_replay": ("--data.replay.images_per_class=5000",)},
        published=dict(zip(_RANK1_METHODS, _RANK1_ROWS[dataset], strict=True)),
        source="2509.23593, table 1; three seeds, 2048 Inception features",
        note="Here in bfloat16 mixed precision."
        + (" Its code has strengths of 10000 and 20000 (--strengths 10000 20000)." if version == "code" else ""),
    )


_DIRECTIONS_PRESET = Preset(
    ("base", "data/digits", "model/unet_8x8", "hardware/cpu"),
    (
        "--data.classes=[0,1,2,3]",
        "--data.epochs_per_task=60",
        "--trainer.check_val_every_n_epoch=60",
    ),
    methods=("finetune", *_DIRECTIONS),
    strengths=dict.fromkeys(_DIRECTIONS, 15000.0),
    matched=True,
    bands=("low", "mid", "high"),
)

PRESETS = {
    "digits": Preset(
        ("base", "data/digits", "model/unet_8x8", "hardware/cpu"),
        ("--data.epochs_per_task=60", "--trainer.check_val_every_n_epoch=60"),
    ),
    "directions": _DIRECTIONS_PRESET,
    "directions_proximal": replace(
        _DIRECTIONS_PRESET,
        words_of=dict.fromkeys(_DIRECTIONS, ("--trainer.callbacks.mode=proximal",)),
        strengths=dict.fromkeys(_DIRECTIONS, 1500.0),
    ),
    "mnist16": Preset(("base", "data/mnist16", "model/unet_16x16", "hardware/cpu")),
    **{dataset: _rank1(dataset, "paper") for dataset in _RANK1_ROWS},
    **{f"{dataset}_code": _rank1(dataset, "code") for dataset in _RANK1_ROWS},
    "iewc": Preset(
        ("base", "published/iewc_two_tasks", "hardware/gpu"),
        methods=("finetune", "diagonal", "iewc_diagonal", "iewc_sliced_diagonal"),
        strengths={"diagonal": 1e4, "iewc_diagonal": 25.0},
        error=True,
        published={
            "finetune": (0.0705, 0.0420, 0.0540),
            "diagonal": (0.0344, 0.0058, 0.0284),
            "iewc_diagonal": (0.0332, 0.0048, 0.0288),
            "iewc_sliced_diagonal": (0.0279, -0.0007, 0.0348),
        },
        source="2611.16039; five seeds",
        note="Here in bfloat16 mixed precision. The published sliced row is of another metric (its solve projects on "
        "zero mean where the last entry must vanish) at strength 1e7; the one here is the exact dual, its strength "
        "matched by trace.",
    ),
}
