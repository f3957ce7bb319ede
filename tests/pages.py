"""The code on the project's pages: which blocks there are, what each is, and which commands the shell makes of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Literal

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "configs/README.md",
    "cl_diffusion/callbacks/README.md",
    "cl_diffusion/fisher/README.md",
    "tools/README.md",
)
PROGRAMS = ("cl-diffusion", "python", "sbatch", "pip", "pytest", "pre-commit", "ruff", "mypy", "lint-imports")
INLINE = re.compile(r"`((?:\w+=\S+ )?(?:cl-diffusion|python|sbatch|pytest)\s[^`]+)`")

Kind = Literal["python", "yaml", "commands", "arguments", "folders"]


@dataclass(frozen=True)
class Block:
    """Code as a page shows it: fenced (with its language), indented by four, or a command within a sentence."""

    page: str
    line: int
    language: str | None
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> Kind | None:
        """What the language says; of a block without one: folders where its first line ends as a folder's name does,
        arguments where it begins as an option does, commands where the shell finds programs of ``PROGRAMS`` alone."""
        if self.language in ("python", "yaml"):
            return self.language  # type: ignore[return-value]
        if self.language is not None:
            return None
        if self.text.splitlines()[0].endswith("/"):
            return "folders"
        if self.text.startswith("--"):
            return "arguments"
        return "commands" if self.commands and all(words[0] in PROGRAMS for words in self.commands) else None

    @property
    def commands(self) -> list[list[str]]:
        return [list(words) for words in commands(self.text)]


def blocks(page: str) -> list[Block]:
    """Of a page, in its order. A fence may stand in a list; lines indented by four follow a blank line."""
    lines = (ROOT / page).read_text().splitlines()
    found: list[Block] = []
    position, prose = 0, [*lines]
    while position < len(lines):
        start, fence = position, re.match(r"( *)```(\w*)$", lines[position])
        if fence:
            position += 1 + lines[position + 1 :].index(f"{fence[1]}```")
            found.append(Block(page, start + 2, fence[2], dedent("\n".join(lines[start + 1 : position]))))
            position += 1
        elif lines[position].startswith("    ") and position and not lines[position - 1].strip():
            while position < len(lines) and (not lines[position].strip() or lines[position].startswith("    ")):
                position += 1
            found.append(Block(page, start + 1, None, dedent("\n".join(lines[start:position])).strip("\n")))
        else:
            position += 1
            continue
        prose[start:position] = [""] * (position - start)
    text = "\n".join(prose)
    within = [(text.count("\n", 0, at.start()) + 1, at[1].replace("\n", " ")) for at in INLINE.finditer(text)]
    found += [Block(page, line, None, re.sub(r"\s+", " ", command)) for line, command in within]
    return sorted(found, key=lambda block: block.line)


BLOCKS = [block for page in PAGES for block in blocks(page)]


@cache
def commands(text: str) -> tuple[tuple[str, ...], ...]:
    """The words of each program that bash would start, in order; of a loop, in its first turn. No pattern is expanded.

    Bash knows no program but those of ``PROGRAMS``, which only write down their words; the first word of any other is
    among the results too.
    """
    told = "told() { printf '%s\\037' \"$@\"; printf '\\036'; }"
    known = "\n".join(f'{program}() {{ told {program} "$@"; }}' for program in PROGRAMS)
    other = 'command_not_found_handle() { told "$@"; }'
    first_turn = re.sub(r"(for \w+ in \S+)[^;\n]*", r"\1", text)
    script = "\n".join(["set -f", told, known, other, first_turn])
    done = subprocess.run(["/bin/bash", "-c", script], env={"PATH": "/nowhere"}, capture_output=True, text=True)
    lines = [line.strip("\n").split("\037")[:-1] for line in done.stdout.split("\036")[:-1]]
    if done.returncode or done.stderr:
        return ((f"bash: {done.stderr or done.returncode}",),)
    return tuple(tuple(words) for words in lines)
