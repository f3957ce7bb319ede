"""The configuration that a checkpoint was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def configuration_of(path: str) -> str:
    """Model and data of a checkpoint, as a configuration in JSON.

    Raises:
        ValueError: there is no such file, or it was not written by a fit of this command.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"ckpt_path={path!r} is not a file; give the path of a checkpoint, such as runs/NAME/checkpoints/last.ckpt"
        )
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    model, data = checkpoint.get("hyper_parameters"), checkpoint.get("datamodule_hyper_parameters")
    if not model or not data or "_class_path" not in model:
        raise ValueError(
            f"ckpt_path={path!r} holds no configuration of model and data: it was not written by `cl-diffusion fit`; "
            "evaluate it from Python, where its model is built"
        )
    return json.dumps({"model": _class_entry(model), "data": _class_entry(data)})


def _class_entry(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning stores the arguments flat, beside the class."""
    init_args = {name: value for name, value in hyper_parameters.items() if not name.startswith("_")}
    return {"class_path": hyper_parameters["_class_path"], "init_args": init_args}
