"""A clone of the repository with cut configurations, in which commands run as a reader would give them."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pytest

from cl_diffusion.cli import main
from tests import cut
from tests.pages import BLOCKS, ROOT

FIT = ["--data.epochs_per_task=1", "--trainer.check_val_every_n_epoch=1", "--trainer.limit_train_batches=1"]
CELLS = [*FIT, "--data.classes=[0,1,2,3]"]
ONE_SEED = ["--seeds", "0", "--jobs", "1"]
CHECKED_ONLY = {
    "tools/bench_plasticity.py relu": "a hundred fits of 2,000 steps, which no option makes fewer",
    "tools/bench_plasticity.py sweep": "six fits a method at least; `table` runs the same fits",
    "tools/bench_plasticity.py overhead": "five epochs of 102 blocks, which no option makes fewer",
    "tools/bench_scale.py": "tests/test_bench_scale.py runs all of it, cut by --quick",
    "tools/bench_train.py": "tests/test_bench_train.py runs all of it, cut by the same options",
    "tools/compare_peers.py": "makes environments of other libraries; tests/test_compare_peers.py runs our side",
    "tools/chaos.py": "fits a stream with everything on twice, whatever the number of kills",
}
"""What no option cuts to seconds, or another test runs so: here, only the arguments are read."""
CUT = {
    "tools/audit_table.py": [],
    "tools/audit_variants.py": [*ONE_SEED, "--variants", "32 samples", *FIT],
    "tools/bench_fisher.py": [
        *("--networks", "8x8, widths 32-64", "--batch-sizes", "8", "--samples", "16", "--rounds", "1", "--processes"),
    ],
    "tools/bench_guidance.py": [
        *("--scales", "1", "--budget", "4", "--classifier-steps", "2", "--images-per-class", "1", "--seeds", "0"),
    ],
    "tools/bench_penalty.py": ["--sizes", "1e3", "--tasks", "1", "--rounds", "1"],
    "tools/bench_plasticity.py table": [*ONE_SEED, "--methods", "self_normalized_resets", *FIT[2:]],
    "tools/bench_plasticity.py detection": [],
    "tools/bench_sampler.py path": ["--steps", "4", "8", "--samples", "4"],
    "tools/bench_sampler.py images": [
        *("--budgets", "4", "--images-per-class", "2", "--seeds", "0", "--only", "ancestral"),
    ],
    "tools/forgetting_picture.py": [],
    "tools/linear_gaussian.py": ["--dimensions", "1", "2", "--remainders", "0.1", "--samples", "60"],
    "tools/moved.py": [],
    "tools/permuted_digits.py": ["--methods", "EWC, diagonal", "--seeds", "0", "--epochs", "1"],
    "tools/rank1_figures.py": [],
    "tools/reproduce.py": [*ONE_SEED, *CELLS],
}
"""What is appended to a tool's own arguments."""


def entry(words: list[str], table: Iterable[str]) -> str | None:
    """The key of a table that begins a command: the tool, or the tool and its first argument."""
    said = " ".join(words[1:])
    return next((key for key in table if said == key or said.startswith(f"{key} ")), None)


def few_methods(words: list[str]) -> list[str]:
    """The last method that is named, and the one that it is held against; of a preset's own, two. At one strength."""
    given = words[words.index("--methods") + 1 :] if "--methods" in words else ["finetune", "rank1"]
    methods = given[: next((at for at, word in enumerate(given) if word.startswith("--")), len(given))]
    few = methods[-1:] if "--methods" in words else methods
    against = [words[words.index("--against") + 1]] if "--against" in words else []
    strength = ["--strengths", words[words.index("--strengths") + 1]] if "--strengths" in words else []
    return ["--methods", *dict.fromkeys([*against, *few]), *strength]


class Clone:
    """A folder, and what has been run in it. A command that needs a run of another is preceded by that.

    Args:
        folder: empty; it becomes the top of the repository.
        more: commands besides those of the pages that runs may come from; these first.
    """

    def __init__(self, folder: Path, more: Iterable[list[str]] = ()) -> None:
        self.folder, self.more = folder, list(more)
        self.done: list[list[str]] = []
        cut.write(folder)

    def run(self, commands: list[list[str]]) -> None:
        """In order; a command that has been run is not run again."""
        own = {name for words in commands for name in [made(words)] if name}
        for words in commands:
            for name in needed(words) if words not in self.done else []:
                if not (self.folder / name).exists() and not any(fnmatch.fnmatch(each, name) for each in own):
                    self.run(self.source(name))
            if words in self.done:
                continue
            with self.inside():
                self.command(words)
            self.done.append(words)

    def source(self, name: str) -> list[list[str]]:
        """The commands of the first block that makes a run."""
        listed = [block.commands for block in BLOCKS if block.kind == "commands"]
        for commands in (*([words] for words in self.more), *listed):
            if any(fnmatch.fnmatch(made(words) or "", name) for words in commands):
                return commands
        raise AssertionError(f"no command of a page makes {name}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """With the folder as the working directory, and a cache of its own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("CL_DIFFUSION_CACHE", str(self.folder / "cache"))
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv("OMP_NUM_THREADS", "1")
            yield

    def command(self, words: list[str]) -> None:
        """One, cut; anything but success fails."""
        if words[0] == "cl-diffusion":
            main([*words[1:], *cut.words(words[1:])])
        elif words[0] == "python":
            words = [path for word in words[1:] for path in (sorted(glob(word)) if "*" in word else [word])]
            done = subprocess.run([sys.executable, *self.with_cut(words)], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def with_cut(self, words: list[str]) -> list[str]:
        """A tool's arguments, and those that make it short."""
        if entry(["python", *words], CHECKED_ONLY):
            return [*words, "--help"]  # told once what stands before it has been read
        key = entry(["python", *words], CUT)
        assert key, f"{shlex.join(words)}: neither in CUT nor in CHECKED_ONLY of {os.path.relpath(__file__, ROOT)}"
        return [*words, *CUT[key], *(few_methods(words) if key == "tools/reproduce.py" else [])]


def made(words: list[str]) -> str | None:
    """The folder of runs that a command writes."""
    for option in ("--run", "--out"):
        if option in words:
            return words[words.index(option) + 1]
    if "configs/quickstart.yaml" in words:
        return "runs/quickstart"  # its own
    return f"runs/reproduce/{words[2]}" if words[1:2] == ["tools/reproduce.py"] else None


def needed(words: list[str]) -> list[str]:
    """The folders of runs that a command reads: all that it names but its own, patterns among them."""
    named = dict.fromkeys(name for word in words for name in re.findall(r"runs/(?:reproduce/)?[\w*]+", word))
    return [name for name in named if name != made(words)]
