"""An environment for each library, made once and used again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

from peers.libraries import Library


def python_of(library: Library, environments: Path) -> Path:
    """The interpreter that has the library, which is installed where it is not yet.

    Raises:
        RuntimeError: pip did not get through; the message is its last line.
    """
    if not library.installs:
        return Path(sys.executable)
    folder = environments / library.name
    python, marker, wanted = folder / "bin" / "python", folder / "installed.json", json.dumps(library.installs)
    if marker.exists() and marker.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    for words in library.installs:
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", *words], capture_output=True, text=True, env=alone()
        )
        if done.returncode:
            raise RuntimeError(f"pip install {' '.join(words)}: {last_line(done.stderr)}")
    marker.write_text(wanted)
    return python


def alone() -> dict[str, str]:
    """One thread, and no packages but the environment's own."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **threads}


def last_line(said: str) -> str:
    """What a process said last; notices of pip's own left aside."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("[notice]")]
    return lines[-1] if lines else "nothing was said"
