"""Constructors can be named and filled in from a configuration file."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from cl_diffusion.diffusion import Denoiser, DenoisingLoss, SNRBand
from cl_diffusion.diffusion.samplers import DDIMSampler, Sampler

ROOM = "cl_diffusion.diffusion"


def built(target: type, **config: Any) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    add = parser.add_class_arguments if target is not Sampler else parser.add_subclass_arguments
    add(target, "it")
    read = parser.parse_args(["--config", yaml.safe_dump({"it": config})])
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    return instantiate(read).it


@pytest.mark.parametrize(("name", "options"), [("linear", {"beta_end": 0.1}), ("cosine", {})])
def test_a_schedule_is_named_by_its_constructor(name: str, options: dict[str, float]) -> None:
    schedule = {"class_path": f"{ROOM}.NoiseSchedule.{name}", "init_args": {"steps": 7, **options}}
    network = {"class_path": "tests.diffusion.networks.Wave"}
    denoiser = built(Denoiser, network=network, schedule=schedule, prediction="v")
    assert denoiser.schedule.num_steps == 7
    assert denoiser.prediction == "v"


def test_a_schedule_can_be_listed() -> None:
    schedule = {"class_path": f"{ROOM}.NoiseSchedule", "init_args": {"alpha_bar": [0.9, 0.5]}}
    denoiser = built(Denoiser, network={"class_path": "tests.diffusion.networks.Wave"}, schedule=schedule)
    assert denoiser.schedule.alpha_bar.tolist() == [0.9, 0.5]


def test_a_band_is_written_in_place() -> None:
    assert built(DenoisingLoss, band={"name": "low", "high": -1.5}).band == SNRBand("low", high=-1.5)


def test_a_sampler_is_named_by_its_class() -> None:
    sampler = built(Sampler, class_path=f"{ROOM}.samplers.DDIMSampler", init_args={"steps": 20})
    assert isinstance(sampler, DDIMSampler)
    assert (sampler.steps, sampler.eta, sampler.clip) == (20, 0.0, True)
