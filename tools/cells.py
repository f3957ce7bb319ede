"""A cell of a matrix of methods and seeds: one fit, and how it is known again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from presets import Preset, has_penalty
from runs import fit_words

CONFIGS = Path(__file__).parents[1] / "configs"
FINISHED = "finished"


@dataclass(frozen=True)
class Cell:
    """One method on one seed. A strength, if any, takes the place of the preset's and of that in the method's file."""

    method: str
    strength: float | None
    seed: int

    @property
    def name(self) -> str:
        """The row of the table."""
        return self.method if self.strength is None else f"{self.method}, strength {self.strength:.12g}"

    def folder(self, out: Path) -> Path:
        """Of the run."""
        return out / re.sub(r"^\.+|[^\w+.]+", "_", self.name) / f"seed_{self.seed}"

    def log(self, out: Path) -> Path:
        """Where the run's output goes."""
        return self.folder(out).with_suffix(".log")

    def words(self, preset: Preset, extra: Sequence[str]) -> list[str]:
        """What is fitted, whatever the machine and folder: names below ``configs/``, and arguments."""
        chosen = preset.strength_of(self.method, self.strength)
        return [*preset.files_of(self.method), *preset.words_for(self.method), *chosen, *extra]

    def identity(self, preset: Preset, extra: Sequence[str]) -> dict[str, str]:
        """What two runs have in common that are one cell: their arguments, and what each of their files says."""
        files = {name: (CONFIGS / f"{name}.yaml").read_text() for name in preset.files_of(self.method)}
        files |= {str(path): path.read_text() for path in _files(extra)}
        digests = {
            name: hashlib.sha256(json.dumps(yaml.safe_load(text)).encode()).hexdigest() for name, text in files.items()
        }
        return {"arguments": " ".join(self.words(preset, extra)), **digests}

    def command(self, preset: Preset, extra: Sequence[str], out: Path) -> list[str]:
        """Of ``cl-diffusion``: a fit, resumed where there is a checkpoint."""
        files = {name: ["-c", str(CONFIGS / f"{name}.yaml")] for name in preset.files_of(self.method)}
        words = [part for word in self.words(preset, extra) for part in files.get(word, [word])]
        words.append(f"--seed_everything={self.seed}")
        if has_penalty(self.method):
            words.append(f"--trainer.callbacks.seed={self.seed}")  # of the draws of its Fisher
        return fit_words(self.folder(out), words)

    def finished(self, preset: Preset, extra: Sequence[str], out: Path) -> bool:
        """Whether it has been run to its end.

        Raises:
            ValueError: it has, by other arguments.
        """
        marker = self.folder(out) / FINISHED
        if not marker.exists():
            return False
        before, now = json.loads(marker.read_text()), self.identity(preset, extra)
        was, is_ = (identity["arguments"].split() for identity in (before, now))
        differing = [f"the content of {name}" for name in now if name != "arguments" and before.get(name) != now[name]]
        differing += [f"{word} (then)" for word in sorted(set(was) - set(is_))]
        differing += [f"{word} (now)" for word in sorted(set(is_) - set(was))]
        if not differing and was != is_:
            differing = [f"another order of {' '.join(is_)}"]
        if differing:
            raise ValueError(
                f"{self.name}, seed {self.seed} was run with another configuration: {', '.join(differing)}; name "
                f"another --out, or remove {self.folder(out)}"
            )
        return True


def _files(words: Sequence[str]) -> list[Path]:
    """Configurations among further arguments: ``-c FILE`` or ``--config=FILE``."""
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-c", "--config")]
    named += [word.partition("=")[2] for word in words if word.startswith(("-c=", "--config="))]
    return [Path(name) for name in named if not name.lstrip().startswith("{") and Path(name).is_file()]
