from __future__ import annotations

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {name for name in output.split("\n") if name and not name.startswith("cl_diffusion")}


def test_importing_a_callback_adds_no_package_beyond_what_lightning_imports() -> None:
    lightning = modules_after("import lightning.pytorch")
    added = modules_after("from cl_diffusion.callbacks import EWC") - lightning
    packages = {name.partition(".")[0] for name in added} - {name.partition(".")[0] for name in lightning}
    assert packages <= set(sys.stdlib_module_names)


def test_the_fisher_knows_no_diffusion() -> None:
    code = "import sys, cl_diffusion.fisher; print([m for m in sys.modules if m.startswith('cl_diffusion.diffusion')])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


def test_public_names_are_found_and_unknown_ones_are_not() -> None:
    import cl_diffusion

    assert all(hasattr(cl_diffusion, name) for name in cl_diffusion.__all__)
    assert not hasattr(cl_diffusion, "Nothing")
