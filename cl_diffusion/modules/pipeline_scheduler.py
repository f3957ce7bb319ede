"""A noise schedule and a sampler as a scheduler of diffusers, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_diffusion.diffusion import Denoiser, NoiseSchedule, samplers
from cl_diffusion.diffusion.samplers import AncestralSampler, DDIMSampler, LearnedVarianceSampler, Sampler

PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SPACINGS = ("linspace", "trailing", "leading")
_HOME = samplers.__name__


class Scheduled(NamedTuple):
    """A scheduler of diffusers, how its pipeline is called, and what that does otherwise than the sampler."""

    scheduler: Any
    call: dict[str, Any]
    differences: list[str]


def scheduled(denoiser: Denoiser, sampler: Sampler) -> Scheduled:
    """The scheduler that takes the sampler's steps: DDIM's for ``DDIMSampler``, else that of Ho et al. 2020.

    Steps are the same to rounding where ``differences`` is empty.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    visited, total = sampler.timesteps(denoiser.schedule), denoiser.schedule.num_steps
    options: dict[str, Any] = {
        "num_train_timesteps": total,
        "trained_betas": trained_betas(denoiser.schedule.alpha_bar),
        "prediction_type": PREDICTIONS[denoiser.prediction],
        "clip_sample": sampler.clip,
    }
    call: dict[str, Any] = {"num_inference_steps": len(visited)}
    make: Any = DDPMScheduler
    if isinstance(sampler, DDIMSampler) and not denoiser.learned_variance:
        make, differences = DDIMScheduler, []
        call |= {"eta": sampler.eta, "use_clipped_model_output": sampler.clip}
    else:
        differences = _differences(denoiser, sampler)
        fixed = f"fixed_{getattr(sampler, 'variance', 'small')}"
        options["variance_type"] = "learned_range" if denoiser.learned_variance else fixed
    spacing = _spacing(make, visited, total)
    if spacing is None:
        stride = total // len(visited)
        spacing = "leading" if total % len(visited) else "trailing"
        own = range(stride - 1 if spacing == "trailing" else 0, stride * len(visited), stride)
        same = f"with {type(sampler).__name__}(steps=list({own})) they are the same"
        differences.append(f"it visits other timesteps; {same}")
    return Scheduled(make(**options, timestep_spacing=spacing), call, differences)


def _spacing(make: Any, visited: list[int], total: int) -> str | None:
    """By which of diffusers' three spacings a scheduler visits these timesteps, if any."""
    for spacing in SPACINGS:
        scheduler = make(num_train_timesteps=total, timestep_spacing=spacing)
        scheduler.set_timesteps(len(visited))
        if scheduler.timesteps.tolist() == visited and (make.__name__ != "DDIMScheduler" or _regular(visited, total)):
            return spacing
    return None


def _regular(visited: list[int], total: int) -> bool:
    """Whether diffusers' DDIM, which goes down by ``T // N`` at every step, steps from each timestep to the next."""
    stride = total // len(visited)
    return [t - stride for t in visited[:-1]] == visited[1:] and visited[-1] < stride


def trained_betas(alpha_bar: Tensor) -> list[float]:
    """``beta_t`` in float32, such that the product of ``1 - beta_t`` is ``abar_t`` again.

    Each makes up for the rounding of those before it, which else adds up over the steps. What is left is the rounding
    of the last ``1 - beta_t`` alone, 3e-8 of 1: relative to ``abar_t`` it counts where that falls to a small part of
    what it was in one step, as at the end of the cosine schedule.
    """
    betas, product = [], 1.0
    for abar in alpha_bar.tolist():
        beta = torch.tensor(1 - abar / product, dtype=torch.float32).clamp(min=0)
        product *= float(1 - beta)
        betas.append(float(beta))
    return betas


def schedule_of(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a scheduler's configuration: diffusers' own table, which is float32.

    Raises:
        ValueError: it is not a variance-preserving one over discrete timesteps, or reaches no signal at all.
    """
    from diffusers import DDPMScheduler
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

    if config.get("_class_name") not in KarrasDiffusionSchedulers.__members__:
        known = ", ".join(KarrasDiffusionSchedulers.__members__)
        raise ValueError(f"the scheduler is a {config.get('_class_name')!r}; expected one of {known}")
    scheduler: Any = DDPMScheduler
    return NoiseSchedule(scheduler.from_config(dict(config)).alphas_cumprod)


def sampler_of(config: Mapping[str, Any]) -> tuple[Sampler, list[str]]:
    """The sampler of a scheduler's configuration, at the number of steps that is its pipeline's default.

    DDIM's is 50 steps, that of Ho et al. 2020 all of them; other schedulers have none here and give way to DDIM.

    Returns:
        The sampler, and what it does otherwise than the scheduler.
    """
    from diffusers import DDIMScheduler

    kind, clip = config["_class_name"], bool(config.get("clip_sample", True))
    expected = {"thresholding": False, "clip_sample_range": 1.0, "rescale_betas_zero_snr": False}
    if kind == "DDIMScheduler":
        expected["set_alpha_to_one"] = True
    differences = [
        f"{name}={config[name]!r} is not taken over, the sampler's is {own!r}"
        for name, own in expected.items()
        if config.get(name, own) != own
    ]
    if kind == "DDPMScheduler":
        variance = str(config.get("variance_type", "fixed_small"))
        if variance == "learned_range":
            return LearnedVarianceSampler(steps=None, clip=clip, clip_pixel=None), differences
        return AncestralSampler(variance="large" if "large" in variance else "small", clip=clip), differences
    if kind != "DDIMScheduler":
        return DDIMSampler(steps=50), [*differences, f"there is no {kind} here, DDIMSampler(steps=50) draws instead"]
    make: Any = DDIMScheduler
    scheduler = make.from_config(dict(config))
    total = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(min(50, total))
    visited = scheduler.timesteps.tolist()
    if clip:
        differences.append("the noise is solved again where an image is clipped, as with use_clipped_model_output=True")
    if not _regular(visited, total):
        differences.append("each step leads to the next timestep that is visited, not T // N below")
    return DDIMSampler(steps=visited, clip=clip), differences


def described(sampler: Sampler) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of a sampler, plain values only.

    Raises:
        ValueError: an argument is more than that, or the class is not of this package.
    """
    name = type(sampler).__name__
    if getattr(samplers, name, None) is not type(sampler):
        raise ValueError(_not_plain(name, "a class of yours"))
    arguments: dict[str, Any] = {}
    for argument in inspect.signature(type(sampler)).parameters:
        value = getattr(sampler, argument, None)
        if isinstance(value, Sampler):
            value = described(value)
        elif not (value is None or isinstance(value, (bool, int, float, str, list))):
            raise ValueError(_not_plain(name, f"{argument} is {type(value).__name__}"))
        if hasattr(sampler, argument):
            arguments[argument] = value
    return {"class_path": f"{_HOME}.{name}", "init_args": arguments}


def built(description: Mapping[str, Any]) -> Sampler:
    """The inverse of ``described``; nothing but a sampler of this package is built.

    Raises:
        ValueError: the class is none of them.
    """
    home, _, name = description["class_path"].rpartition(".")
    if home != _HOME or name not in samplers.__all__ or not issubclass(getattr(samplers, name), Sampler):
        raise ValueError(f"class_path={description['class_path']!r}; expected a sampler of {_HOME}")
    arguments = {
        key: built(value) if isinstance(value, dict) else value for key, value in description["init_args"].items()
    }
    sampler: Sampler = getattr(samplers, name)(**arguments)
    return sampler


def _differences(denoiser: Denoiser, sampler: Sampler) -> list[str]:
    """What diffusers' ancestral step does otherwise than a sampler's, its timesteps apart."""
    name, clip_pixel = type(sampler).__name__, getattr(sampler, "clip_pixel", None)
    taken = LearnedVarianceSampler if denoiser.learned_variance else AncestralSampler
    if type(sampler) is not taken:
        return [f"it takes the steps of {taken.__name__}, for diffusers has no {name} that this network can use"]
    found = [f"it knows no clip_pixel, which {name} has as {clip_pixel}"] if clip_pixel is not None else []
    last = sampler.timesteps(denoiser.schedule)[-1]
    if last > 0 and getattr(sampler, "variance", None) != "small":
        found.append(f"it adds noise in its last step too, from t={last}, where {name} returns the mean")
    return found


def _not_plain(name: str, why: str) -> str:
    return (
        f"sampler={name} cannot be written down ({why}): give the module another before, such as "
        "module.sampler = DDIMSampler(), and this one to import_pipeline(folder, sampler=...)"
    )
