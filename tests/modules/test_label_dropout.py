from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_diffusion import DDPM
from cl_diffusion.diffusion.samplers import ClassifierFreeGuidance, DDIMSampler
from cl_diffusion.keys import derive_keys
from tests.modules.test_ddpm import fit
from tests.tiny import unet


def model(**options: Any) -> DDPM:
    options = {"label_dropout": 0.25, "image_shape": (1, 8, 8), **options}
    return DDPM(unet(num_class_embeds=11), **options)


def test_so_many_samples_lose_their_label_the_same_ones_for_the_same_keys() -> None:
    images, labels = torch.zeros(4000, 1, 2, 2), torch.arange(4000) % 10
    keys = derive_keys(0, torch.arange(4000))
    keyed, again, plain = (model().draw((images, labels), k) for k in (keys, keys, None))
    for drawn in (keyed, plain):
        assert drawn.labels is not None
        dropped = drawn.labels == 10
        assert abs(float(dropped.double().mean()) - 0.25) < 0.03
        assert torch.equal(drawn.labels[~dropped], labels[~dropped])
        assert abs(float(drawn.timesteps[dropped].double().mean()) - 499.5) < 40  # independent of the timestep
    assert torch.equal(keyed.labels, again.labels)
    assert torch.equal(keyed.noise, DDPM(unet()).draw((images, labels), keys).noise)


def test_a_model_with_dropped_labels_draws_with_and_without_them(tmp_path: Path) -> None:
    trained = model(sampler=ClassifierFreeGuidance(DDIMSampler(2), 2.0))
    fit(trained, tmp_path)
    assert trained.sample(torch.tensor([0, 9])).shape == (2, 1, 8, 8)
    assert trained.sample(num_images=3, sampler=DDIMSampler(2)).shape == (3, 1, 8, 8)
    assert trained.loss_identity["label_dropout"] == "0.25"
    assert "label_dropout" not in DDPM(unet()).loss_identity


def test_what_has_no_class_to_spare_is_refused(tmp_path: Path) -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"label_dropout={share}; expected a share"):
            model(label_dropout=share)
    with pytest.raises(ValueError, match="UNet2DModel does not say how many classes it embeds"):
        DDPM(unet(num_class_embeds=None), label_dropout=0.1)
    with pytest.raises(ValueError, match="num_classes=10, and one for dropped labels, but .* 4: .*num_class_embeds=11"):
        fit(DDPM(unet(num_class_embeds=4), label_dropout=0.1), tmp_path)
