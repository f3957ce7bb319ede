"""The configuration that a checkpoint was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cl_diffusion.checkpoint_files import plain_checkpoint, require_whole


def configuration_of(path: str) -> str:
    """Model and data of a checkpoint, as a configuration in JSON.

    Raises:
        ValueError: there is no such file, it is damaged or not plain, or not written by a fit of this command.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"ckpt_path={path!r} is not a file; give the path of a checkpoint, such as runs/NAME/checkpoints/last.ckpt"
        )
    require_whole(Path(path))
    checkpoint = plain_checkpoint(Path(path))
    model, data = checkpoint.get("hyper_parameters"), checkpoint.get("datamodule_hyper_parameters")
    if not model or not data or "_class_path" not in model:
        raise ValueError(
            f"ckpt_path={path!r} holds no configuration of model and data: it was not written by `cl-diffusion fit`; "
            "evaluate it from Python, where its model is built"
        )
    return json.dumps({"model": _class_entry(model), "data": _class_entry(data)})


def without_replaced(configuration: str, args: Sequence[str]) -> str:
    """The configuration without the objects that the arguments replace by one of another class.

    Else the new object would be given those arguments of the old one that it knows by name too: a sampler the ``eta``
    of another.
    """
    config: dict[str, Any] = json.loads(configuration)
    for position, word in enumerate(args):
        name, equals, value = word.partition("=")
        value = value if equals else next(iter(args[position + 1 :]), "")
        if name in ("-c", "--config") and Path(value).is_file():
            _drop_replaced(config, yaml.safe_load(Path(value).read_text()) or {})
        elif name.startswith("--"):
            given: Any = {"class_path": value}
            for key in reversed(name[2:].replace(".init_args", "").split(".")):
                given = {key: given}
            _drop_replaced(config, given)
    return json.dumps(config)


def _drop_replaced(config: dict[str, Any], given: Any) -> None:
    """What has another class in ``given``, at any depth."""
    if not isinstance(given, dict):
        return
    for key, new in given.get("init_args", given).items():
        old = config.get(key)
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        classes = [str(each.get("class_path", "")).rpartition(".")[2] for each in (old, new)]
        if all(classes) and classes[0] != classes[1]:
            del config[key]
        else:
            _drop_replaced(old.get("init_args", old), new)


def _class_entry(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning stores the arguments flat, beside the class."""
    init_args = {name: value for name, value in hyper_parameters.items() if not name.startswith("_")}
    return {"class_path": hyper_parameters["_class_path"], "init_args": init_args}
