"""A model and its pipeline's folder are the same model."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from cl_diffusion import DDPM
from cl_diffusion.diffusion import NoiseSchedule
from cl_diffusion.diffusion.samplers import (
    AnalyticSampler,
    AncestralSampler,
    ClassifierFreeGuidance,
    DDIMSampler,
    HutchinsonSampler,
    LanczosGaussianSampler,
    LearnedVarianceSampler,
    NoiseStatistics,
    Sampler,
)
from cl_diffusion.modules import export_pipeline, import_pipeline, pretrained_network
from cl_diffusion.modules.pipeline_scheduler import trained_betas
from tests.outcome import is_stated
from tests.tiny import unet

SHAPE = (1, 8, 8)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SAMPLERS: list[Sampler] = [
    DDIMSampler(steps=[30, 7, 0], eta=0.5, clip=False),
    AncestralSampler(steps=5, variance="large", spacing="quadratic", clip_pixel=1.0),
    HutchinsonSampler(steps=4, probes=2, product="symmetric"),
    LanczosGaussianSampler(steps=4, lanczos_steps=2, symmetrize=True, clip_pixel=None, eta=0.3),
    LearnedVarianceSampler(steps=6, clip=False, clip_pixel=None),
]


def model(sampler: Sampler | None = None, steps: int = 40, **options: Any) -> DDPM:
    """Unconditional, in evaluation mode, its weights as one trained would have them."""
    torch.manual_seed(0)
    network = options.pop("network", None) or unet(num_class_embeds=None)
    options = {"schedule": NoiseSchedule.linear(steps, beta_end=0.2), "image_shape": SHAPE, **options}
    return DDPM(network, sampler=sampler or DDIMSampler(steps=4), **options).eval()


def exported(module: DDPM, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_pipeline(module, folder)
    return folder


def drawn(module: DDPM, **options: Any) -> torch.Tensor:
    return module.sample(generator=torch.Generator().manual_seed(1), **options)


def check_same(found: DDPM, module: DDPM) -> None:
    ours, theirs = module.denoiser.network.state_dict(), found.denoiser.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(theirs[name].dtype == value.dtype and torch.equal(theirs[name], value) for name, value in ours.items())
    assert torch.equal(found.noise_schedule.alpha_bar, module.noise_schedule.alpha_bar)
    for name in ("prediction", "null_class", "learned_variance"):
        assert getattr(found.denoiser, name) == getattr(module.denoiser, name)
    assert (found.loss_identity, found.image_shape) == (module.loss_identity, module.image_shape)
    assert (type(found.loss), type(found.sampler)) == (type(module.loss), type(module.sampler))


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "v", "schedule": NoiseSchedule.cosine(50)},
        {"prediction": "x0", "reduction": "half_sum", "image_shape": None},
        {"learned_variance": True, "network": unet(num_class_embeds=None, out_channels=2)},
        {"label_dropout": 0.1, "network": unet(num_class_embeds=11)},
        {"network": unet(dropout=0.1).to(torch.bfloat16)},
        {"network": unet(num_class_embeds=None).to(torch.float64)},
        {"network": unet(num_class_embeds=None).to(memory_format=torch.channels_last)},
    ],
)
def test_what_is_exported_is_imported_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    module = model(**options)
    found = import_pipeline(exported(module, tmp_path / "folder"))
    check_same(found, module)
    assert found.training
    assert found.denoiser.network.training


@pytest.mark.parametrize(
    "sampler", [*SAMPLERS, ClassifierFreeGuidance(DDIMSampler(3), 2.0)], ids=lambda s: type(s).__name__
)
def test_the_sampler_comes_back_with_all_that_it_was_given(sampler: Sampler, tmp_path: Path) -> None:
    found: Any = import_pipeline(exported(model(sampler), tmp_path / "folder")).sampler
    while isinstance(sampler, ClassifierFreeGuidance):
        assert (type(found), found.scale) == (ClassifierFreeGuidance, sampler.scale)
        found, sampler = found.sampler, sampler.sampler
    assert type(found) is type(sampler)
    assert vars(found) == vars(sampler)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (DDIMSampler(steps=None), {}),
        (DDIMSampler(steps=None, clip=False, eta=1.0), {"prediction": "v"}),
        (DDIMSampler(steps=list(range(3, 40, 4)), eta=0.5), {"prediction": "x0"}),
        (DDIMSampler(steps=list(range(0, 40, 8))), {"schedule": NoiseSchedule.cosine(40)}),
        (DDIMSampler(steps=1), {}),
        (AncestralSampler(), {}),
        (AncestralSampler(steps=7, variance="large", clip=False), {"prediction": "v"}),
        (AncestralSampler(steps=list(range(3, 40, 4))), {"prediction": "x0"}),
        (
            LearnedVarianceSampler(steps=7, clip_pixel=None),
            {"learned_variance": True, "network": unet(num_class_embeds=None, out_channels=2)},
        ),
    ],
)
def test_the_pipeline_draws_the_same_images_from_the_same_noise(
    sampler: Sampler, options: dict[str, Any], tmp_path: Path
) -> None:
    module = model(sampler, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_pipeline(module, tmp_path / "folder")
    kind = DDIMPipeline if isinstance(sampler, DDIMSampler) else DDPMPipeline
    pipeline = kind.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    call = json.loads((tmp_path / "folder" / "cl_diffusion.json").read_text())["pipeline"]["call"]
    generator = torch.Generator().manual_seed(1)
    found = pipeline(batch_size=3, generator=generator, output_type="pt", **call).images
    expected = (drawn(module, num_images=3) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(drawn(import_pipeline(tmp_path / "folder"), num_images=3), drawn(module, num_images=3))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (model(DDIMSampler(steps=10)), r"with DDIMSampler\(steps=list\(range\(3, 40, 4\)\)\) they are the same"),
        (model(DDIMSampler(steps=7)), r"DDIMSampler\(steps=list\(range\(0, 35, 5\)\)\)"),
        (model(AncestralSampler(steps=[20, 3, 0])), "visits other timesteps"),
        (model(AncestralSampler(clip_pixel=2.0)), "knows no clip_pixel"),
        (model(AncestralSampler(steps=list(range(3, 40, 4)), variance="large")), "adds noise in its last step"),
        (model(LanczosGaussianSampler(steps=5)), "takes the steps of AncestralSampler"),
        (model(network=unet()), "no labels, so that calling it fails"),
        (
            model(network=unet(num_class_embeds=None).to(torch.bfloat16)),
            "bfloat16, so that images agree to the rounding",
        ),
        (model(network=unet(num_class_embeds=None).half()), "float16, so that images agree to the rounding"),
        (model(image_shape=(1, 16, 16)), r"draws images of \(1, 8, 8\)"),
    ],
)
def test_what_the_pipeline_does_otherwise_is_said(module: DDPM, says: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=says):
        export_pipeline(module, tmp_path / "folder")
    written = json.loads((tmp_path / "folder" / "cl_diffusion.json").read_text())["pipeline"]
    assert written["differences"]
    kind = DDIMPipeline if "eta" in written["call"] else DDPMPipeline
    kind.from_pretrained(tmp_path / "folder", local_files_only=True)
    check_same(import_pipeline(tmp_path / "folder"), module)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.linear(4000, 1e-5, 0.01)])
def test_betas_give_the_schedule_back_to_one_rounding_of_float32(schedule: NoiseSchedule) -> None:
    found = DDPMScheduler(schedule.num_steps, trained_betas=trained_betas(schedule.alpha_bar)).alphas_cumprod
    torch.testing.assert_close(found.double(), schedule.alpha_bar, rtol=1.3e-7, atol=0)
    naive = 1 - schedule.alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]])
    added_up = DDPMScheduler(schedule.num_steps, trained_betas=naive.tolist()).alphas_cumprod
    assert (added_up / schedule.alpha_bar - 1).abs().max() > 1.3e-7


def test_a_compiled_network_is_exported_as_itself(tmp_path: Path) -> None:
    module = model()
    folder = exported(module, tmp_path / "plain")
    module.denoiser.network.compile()
    module.denoiser.network = torch.compile(module.denoiser.network)  # type: ignore[assignment]
    again = exported(module, tmp_path / "compiled")
    assert (again / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def theirs(folder: Path, scheduler: Any, flat: bool = False) -> Any:
    """A folder that diffusers wrote; flat, and with the names of its first versions, as google/ddpm-cifar10-32 is."""
    torch.manual_seed(0)
    pipeline = DDPMPipeline(unet=unet(num_class_embeds=None), scheduler=scheduler)
    kind: Any = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    kind(unet=pipeline.unet, scheduler=scheduler).save_pretrained(folder)
    if flat:
        for path in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
            path.rename(folder / path.name)
        for name in ("unet", "scheduler"):
            (folder / name).rmdir()
        weights = folder / "diffusion_pytorch_model.safetensors"
        old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        state = load_file(weights)
        for new, former in old.items():
            state = {name.replace(new, former): value for name, value in state.items()}
        save_file(state, weights, metadata={"format": "pt"})
    pipeline = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(num_train_timesteps=30, variance_type="fixed_large", beta_end=0.3),
        DDPMScheduler(num_train_timesteps=30, clip_sample=False, prediction_type="v_prediction", beta_end=0.3),
        DDIMScheduler(num_train_timesteps=100, beta_end=0.1, clip_sample=False),
        DDIMScheduler(
            num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="sample"
        ),
    ],
)
def test_a_folder_of_diffusers_draws_here_what_it_draws_there(scheduler: Any, flat: bool, tmp_path: Path) -> None:
    pipeline = theirs(tmp_path / "folder", scheduler, flat)
    module = import_pipeline(tmp_path / "folder")
    assert torch.equal(module.noise_schedule.alpha_bar.float(), scheduler.alphas_cumprod)
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(module.denoiser.network.state_dict()[name], value)
    generator = torch.Generator().manual_seed(1)
    steps = {} if isinstance(scheduler, DDIMScheduler) else {"num_inference_steps": 30}
    found = pipeline(batch_size=3, generator=generator, output_type="pt", **steps).images
    torch.testing.assert_close((drawn(module, num_images=3) / 2 + 0.5).clamp(0, 1), found, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (DDPMScheduler(num_train_timesteps=30, clip_sample_range=2.0), "clip_sample_range=2.0 is not taken over"),
        (DDIMScheduler(num_train_timesteps=30, set_alpha_to_one=False), "set_alpha_to_one=False"),
        (PNDMScheduler(num_train_timesteps=100), "no PNDMScheduler here"),
    ],
)
def test_what_is_not_taken_over_is_said(scheduler: Any, says: str, tmp_path: Path) -> None:
    theirs(tmp_path / "folder", scheduler)
    with pytest.warns(UserWarning, match=says):
        import_pipeline(tmp_path / "folder")


def test_arguments_replace_those_of_the_folder_and_training_goes_on(tmp_path: Path) -> None:
    folder = exported(model(), tmp_path / "folder")
    module = import_pipeline(folder, sampler=AncestralSampler(steps=3), optimizer=torch.optim.SGD)
    assert isinstance(module.sampler, AncestralSampler)
    assert isinstance(module.configure_optimizers(), torch.optim.SGD)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"smapler": DDIMSampler()}, "argument 'smapler' is no option of an import; expected some of .*sampler"),
        ({"network": unet()}, "argument 'network' is no option"),
        ({"sampler": "ddim"}, "sampler='ddim'; expected a Sampler"),
        ({"sampler": DDIMSampler}, "expected a Sampler, as DDIMSampler"),
    ],
    ids=["mistyped", "network", "a name", "a class"],
)
def test_an_option_that_is_none_is_named_and_the_folder_is_not_blamed(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        import_pipeline(exported(model(), tmp_path / "folder"), **options)
    assert is_stated(refusal.value)
    assert "holds no pipeline" not in str(refusal.value)


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.proof,)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flipped(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def without_a_weight(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state.pop("conv_in.weight")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "cl_diffusion.json").unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).with_suffix(".bin").write_bytes(pickle.dumps(Payload(folder / "proof")))
    (folder / "cl_diffusion.json").unlink()


def foreign_class(folder: Path) -> None:
    (folder / "unet" / "code.py").write_text(f"import pathlib; pathlib.Path({str(folder / 'proof')!r}).mkdir()")
    rewrite(folder / "model_index.json", unet=["code", "UNet2DModel"])


def foreign_sampler(folder: Path) -> None:
    own = folder / "cl_diffusion.json"
    rewrite(own, sampler={"class_path": "os.mkdir", "init_args": {"path": str(folder / "proof")}})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no index": lambda folder: (folder / "model_index.json").unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "cut weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
    "empty weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "a bit of the weights": flipped,
    "a weight is missing": without_a_weight,
    "pickled weights": pickled,
    "cut config": lambda folder: (folder / "unet" / "config.json").write_text("{"),
    "another network": lambda folder: rewrite(folder / "unet" / "config.json", _class_name="UNet1DModel"),
    "another width": lambda folder: rewrite(folder / "unet" / "config.json", block_out_channels=[8, 12]),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "another scheduler": lambda folder: (
        (folder / "cl_diffusion.json").unlink(),
        rewrite(folder / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler"),
    ),
    "another schedule": lambda folder: rewrite(folder / "scheduler" / "scheduler_config.json", trained_betas=[0.1]),
    "another prediction": lambda folder: rewrite(folder / "cl_diffusion.json", prediction="v"),
    "unknown prediction": lambda folder: rewrite(folder / "cl_diffusion.json", prediction=3),
    "own file is cut": lambda folder: (folder / "cl_diffusion.json").write_text('{"alpha_bar": ['),
    "own file is a list": lambda folder: (folder / "cl_diffusion.json").write_text("[]"),
    "class of the folder": foreign_class,
    "sampler of another package": foreign_sampler,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_damaged_or_would_run_code_is_refused_in_one_message(damage: str, tmp_path: Path) -> None:
    folder = exported(model(), tmp_path / "folder")
    DAMAGES[damage](folder)
    with pytest.raises(ValueError, match=r"folder='.*folder.*expected") as refusal:
        import_pipeline(folder)
    assert is_stated(refusal.value)
    assert not (folder / "proof").exists()


@pytest.mark.parametrize(
    "damage", ["no weights", "pickled weights", "cut weights", "cut config", "a weight is missing"]
)
def test_nor_does_a_fit_start_from_it(damage: str, tmp_path: Path) -> None:
    folder = exported(model(), tmp_path / "folder")
    DAMAGES[damage](folder)
    with pytest.raises(ValueError, match=r"folder='.*unet' holds no network") as refusal:
        pretrained_network(str(folder))
    assert is_stated(refusal.value)
    assert not (folder / "proof").exists()


def test_a_folder_that_holds_anything_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="holds something already"):
        export_pipeline(model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    (tmp_path / "empty").mkdir()
    import_pipeline(exported(model(), tmp_path / "empty"))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (DDPM(torch.nn.Conv2d(1, 1, 1)), "network=Conv2d"),
        (model(AnalyticSampler(NoiseStatistics(torch.ones(40)))), "statistics is NoiseStatistics"),
        (model(type("Mine", (DDIMSampler,), {})()), "sampler=Mine.*a class of yours"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(module: DDPM, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        export_pipeline(module, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_weights_of_several_types_are_refused(tmp_path: Path) -> None:
    module = model()
    module.denoiser.network.conv_in.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.bfloat16, torch\.float32; expected one type"):
        export_pipeline(module, tmp_path / "folder")
