"""U-Nets of diffusers folders: the start of a fit, and what is written again."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


def pretrained_network(folder: str) -> nn.Module:
    """The ``diffusers.UNet2DModel`` that ``save_pretrained`` wrote, in training mode, weights bit for bit.

    In a configuration, where ``UNet2DModel`` has no classmethod that a parser of types takes::

        network:
          class_path: cl_diffusion.modules.pretrained_network
          init_args:
            folder: downloaded/ddpm-cifar10-32

    Nothing is downloaded, no pickle read and no code of the folder run. A checkpoint of such a fit holds the network's
    architecture in place of the folder (``self_contained``), and needs it no more; a fit that is resumed builds the
    network from its configuration again, and does.

    Args:
        folder: with ``config.json`` and ``diffusion_pytorch_model.safetensors``, or a pipeline's, where they lie in
            ``unet``.

    Raises:
        ValueError: the folder holds no such network, its weights are damaged, not safetensors, or not all there.
    """
    place = place_of_network(Path(folder))
    try:
        return _read(place)
    except Exception as error:  # what a damaged file raises is diffusers', safetensors', json's or torch's own
        raise ValueError(
            f"folder={str(place)!r} holds no network that can be read ({type(error).__name__}: {_first_line(error)}); "
            f"expected config.json and {WEIGHTS} that UNet2DModel.save_pretrained wrote: pickled weights (.bin) are "
            "not read, load those with diffusers and save them again"
        ) from error


def place_of_network(folder: Path) -> Path:
    """Where a pipeline's network lies: in ``unet``, or, in folders of diffusers' first versions, beside the index."""
    inner = folder / "unet"
    return inner if inner.is_dir() else folder


def self_contained(hyper_parameters: MutableMapping[str, Any], network: nn.Module) -> None:
    """Put the architecture of a network in place of the folder that it came from.

    Args:
        hyper_parameters: of a module, as LightningCLI gives them; others are left alone.
        network: that was built of their ``network``.
    """
    given = hyper_parameters.get("network")
    if isinstance(given, dict) and str(given.get("class_path")).rpartition(".")[2] == pretrained_network.__name__:
        config: Any = network.config
        arguments = {name: value for name, value in config.items() if not name.startswith("_")}
        hyper_parameters["network"] = {
            "class_path": "diffusers.UNet2DModel",
            "init_args": json.loads(json.dumps(arguments)),  # lists for tuples
        }


def portable_copy(network: nn.Module) -> Any:
    """A copy on the CPU, laid out as safetensors wants it and not compiled; the network itself is left alone.

    Raises:
        ValueError: it is no ``UNet2DModel``, is sharded, or has weights of several types.
    """
    from diffusers import UNet2DModel
    from torch.distributed.tensor import DTensor

    network = getattr(network, "_orig_mod", network)  # torch.compile
    state = {name.replace("_orig_mod.", ""): value.detach() for name, value in network.state_dict().items()}
    if not isinstance(network, UNet2DModel) or any(isinstance(value, DTensor) for value in state.values()):
        kind = "sharded " * any(isinstance(value, DTensor) for value in state.values()) + type(network).__name__
        raise ValueError(
            f"network={kind}; expected a UNet2DModel that is not sharded: diffusers' pipelines of unconditional images "
            "have no other, and a sharded one is exported from its checkpoint"
        )
    dtypes = sorted({str(value.dtype) for value in state.values()})
    if len(dtypes) > 1:
        raise ValueError(f"network has weights of {', '.join(dtypes)}; expected one type: module.to(torch.float32)")
    model: Any = UNet2DModel
    config: Any = network.config  # type: ignore[attr-defined]
    with torch.device("meta"):
        copy = model.from_config(config)
    contiguous = torch.contiguous_format
    copy.load_state_dict({n: v.to("cpu", memory_format=contiguous) for n, v in state.items()}, assign=True)
    return copy.eval()


def _read(folder: Path) -> nn.Module:
    from diffusers import UNet2DModel

    kind = json.loads((folder / "config.json").read_text()).get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"config.json is of a {kind!r}, expected 'UNet2DModel'")
    model: Any = UNet2DModel
    network, found = model.from_pretrained(
        str(folder),
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=False,
        output_loading_info=True,
        torch_dtype=_widest(folder),
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found[what]:
            raise ValueError(f"{what.replace('_', ' ')}: {found[what][0]!r}, {len(found[what])} in all")
    trained: nn.Module = network.train()
    return trained


def _widest(folder: Path) -> torch.dtype:
    """The narrowest floating-point type that holds every weight exactly."""
    from safetensors import safe_open

    dtypes = set()
    for path in [folder / WEIGHTS] if (folder / WEIGHTS).exists() else sorted(folder.glob("*-of-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    if not floating:
        raise FileNotFoundError(f"there is no {WEIGHTS}")
    widest: torch.dtype = reduce(torch.promote_types, floating)
    return widest


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
