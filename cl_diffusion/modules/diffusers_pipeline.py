"""A model as the folder of a diffusers pipeline, and back."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.samplers import Sampler
from cl_diffusion.modules.ddpm import DDPM
from cl_diffusion.modules.network_folder import place_of_network, portable_copy, pretrained_network
from cl_diffusion.modules.pipeline_call import call_differences, declared_shape
from cl_diffusion.modules.pipeline_scheduler import (
    PREDICTIONS,
    Scheduled,
    built,
    described,
    sampler_of,
    schedule_of,
    scheduled,
    trained_betas,
)

OWN = "cl_diffusion.json"


def export_pipeline(module: DDPM, folder: str | Path) -> None:
    """Write what ``diffusers.DDPMPipeline`` (of a ``DDIMSampler``: ``DDIMPipeline``) loads by ``from_pretrained``.

    Weights are safetensors, bit for bit, the schedule is ``trained_betas``. From the same noise the pipeline draws the
    images of ``module.sample`` to rounding, called as ``pipeline.call`` of ``cl_diffusion.json`` says; where it cannot,
    ``pipeline.differences`` there and a warning say why. That file also holds what diffusers has no place for:
    ``alpha_bar`` in float64, the sampler, dropped labels. The folder is whole or absent.

    Optimizer and scheduler of the learning rate are no part of it, nor is what callbacks hold.

    Args:
        module: its network a ``diffusers.UNet2DModel``, not sharded.
        folder: new, or empty.

    Raises:
        ValueError: the folder holds something, the network is another, of several types or sharded, or the sampler
            holds more than plain values.
    """
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder={str(folder)!r} holds something already; name a new one, nothing is overwritten")
    network, sampler = portable_copy(module.denoiser.network), described(module.sampler)
    plan = scheduled(module.denoiser, module.sampler)
    plan.differences.extend(call_differences(module, network))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        kind: Any = DDIMPipeline if isinstance(plan.scheduler, DDIMScheduler) else DDPMPipeline
        kind(unet=network, scheduler=plan.scheduler).save_pretrained(str(partial), safe_serialization=True)
        (partial / OWN).write_text(json.dumps(_own(module, sampler, plan, partial), indent=1) + "\n")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for difference in plan.differences:
        rank_zero_warn(f"the pipeline in {folder} differs from the module: {difference}")


def import_pipeline(folder: str | Path, **arguments: Any) -> DDPM:
    """The model of a diffusers folder: one that ``export_pipeline`` wrote, exactly, or any unconditional 2-D one.

    Of another's folder (``model_index.json``, ``unet`` and ``scheduler``, or all beside the index) it takes weights,
    prediction, schedule, as diffusers has it in float32, and the sampler that its pipeline amounts to at its default
    number of steps; what is not taken over is warned of. Nothing is downloaded, no pickle read and no code of the
    folder run.

    Args:
        folder: the pipeline's.
        arguments: of ``DDPM``, such as ``optimizer``, in place of the folder's own.

    Raises:
        ValueError: the folder is no such pipeline, is damaged, or was changed since it was exported; or an argument is
            none of ``DDPM``, or no sampler.
    """
    folder = Path(folder)
    _check_arguments(arguments)
    try:
        _check_index(folder)
        config = _scheduler_config(folder)
        own = json.loads((folder / OWN).read_text()) if (folder / OWN).exists() else None
        found, differences = _of_others(config) if own is None else (_of_own(own, config, folder), [])
        network = pretrained_network(str(folder))
        if own is None:
            found["image_shape"] = declared_shape(network)
        module = DDPM(network, **{**found, **arguments})
    except Exception as error:  # what a damaged file raises is diffusers', safetensors', json's or torch's own
        why = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"folder={str(folder)!r} holds no pipeline that can be imported ({type(error).__name__}: {why}); expected "
            "model_index.json, a UNet2DModel as safetensors and its scheduler, as DDPMPipeline.save_pretrained or "
            "export_pipeline writes them"
        ) from error
    for difference in differences:
        rank_zero_warn(f"the pipeline in {folder} is not imported whole: {difference}")
    return module


def _check_arguments(arguments: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(DDPM).parameters if name != "network"]
    if unknown := [name for name in arguments if name not in known]:
        raise ValueError(f"argument {unknown[0]!r} is no option of an import; expected some of {', '.join(known)}")
    sampler = arguments.get("sampler")
    if not (sampler is None or isinstance(sampler, Sampler)):
        raise ValueError(f"sampler={sampler!r}; expected a Sampler, as DDIMSampler(steps=50), or None for that one")


def _own(module: DDPM, sampler: dict[str, Any], plan: Scheduled, folder: Path) -> dict[str, Any]:
    return {
        "alpha_bar": module.noise_schedule.alpha_bar.tolist(),
        "prediction": module.denoiser.prediction,
        "reduction": module.loss.reduction,
        "label_dropout": module.label_dropout,
        "learned_variance": module.denoiser.learned_variance,
        "image_shape": module.image_shape,
        "sampler": sampler,
        "sha256": _digests(folder),
        "pipeline": {"call": plan.call, "differences": plan.differences},
    }


def _of_own(own: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments of ``DDPM`` that ``_own`` wrote, if the folder is as it was then."""
    schedule = NoiseSchedule(own["alpha_bar"])
    told = (own["sha256"], trained_betas(schedule.alpha_bar), PREDICTIONS[own["prediction"]])
    if told != (_digests(folder), config.get("trained_betas"), config.get("prediction_type")):
        raise ValueError(
            f"damaged or changed since: weights or schedule are not those of {OWN}; remove it if you did so"
        )
    names = ("prediction", "reduction", "label_dropout", "learned_variance")
    shape = own["image_shape"]
    return {
        **{name: own[name] for name in names},
        "schedule": schedule,
        "sampler": built(own["sampler"]),
        "image_shape": None if shape is None else tuple(shape),
    }


def _of_others(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments of ``DDPM`` that a scheduler's configuration amounts to, and what of it is left out."""
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    prediction, variance = config.get("prediction_type", "epsilon"), config.get("variance_type")
    if prediction not in predictions or variance == "learned":
        raise ValueError(f"the scheduler has prediction_type={prediction!r}, variance_type={variance!r}")
    sampler, differences = sampler_of(config)
    found = {
        "schedule": schedule_of(config),
        "prediction": predictions[prediction],
        "sampler": sampler,
        "learned_variance": variance == "learned_range",
    }
    return found, differences


def _check_index(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    kinds = [index.get("unet"), (index.get("scheduler") or [None])[0]]
    if kinds != [["diffusers", "UNet2DModel"], "diffusers"]:
        raise ValueError(f"model_index.json names unet={kinds[0]!r} and a scheduler of {kinds[1]!r}")


def _scheduler_config(folder: Path) -> dict[str, Any]:
    inner = folder / "scheduler"
    config: dict[str, Any] = json.loads(((inner if inner.is_dir() else folder) / "scheduler_config.json").read_text())
    return config


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(place_of_network(folder).glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
