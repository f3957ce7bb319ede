"""Which units are found, and what is refused by name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from cl_diffusion.plasticity import Site, Slice, Units, find_units
from cl_diffusion.plasticity.observation import Observer, peaks
from tests.tiny import unet


class Convolutional(nn.Module):
    """Activations as functions, a norm, pooling and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 4 * 4, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = torch.flatten(F.relu(self.second(x)), 1)
        return self.head(F.gelu(self.hidden(x)))


def found(*layers: nn.Module) -> list[str]:
    return [of.name for of in find_units(nn.Sequential(*layers)).units]


def why(*layers: nn.Module) -> str:
    return find_units(nn.Sequential(*layers)).refused["0"]


def test_a_perceptron_has_the_units_between_its_layers() -> None:
    units, refused = find_units(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 2)))
    (of,) = units
    assert (of.name, of.count, of.activation, of.next_bias) == ("0", 5, "ReLU", "3.bias")
    assert of.activations == Site("1", "output", -1)
    assert refused == {"3": "its output leaves the module"}


def test_a_convolution_that_is_flattened_has_a_column_for_every_position() -> None:
    first, second, hidden = find_units(Convolutional()).units
    assert first.mixes == ""
    assert {part.tensor for part in first.shifts} == {"first.bias", "norm.bias", "norm.running_mean"}
    assert {part.tensor for part in first.scales} == {"norm.weight", "norm.running_var"}
    assert first.outgoing == (Slice("second.weight", axis=1),)
    assert second.outgoing == (Slice("hidden.weight", axis=1, width=16),)
    assert hidden.activation == "GELU"
    for of in (first, second, hidden):
        of.check(Convolutional())


def test_one_activation_module_may_serve_several_layers() -> None:
    relu = nn.ReLU(inplace=True)
    first, second = find_units(nn.Sequential(nn.Linear(2, 3), relu, nn.Linear(3, 4), relu, nn.Linear(4, 1))).units
    assert (first.activations.module, second.activations.module) == ("0", "2")
    values = torch.tensor([-1.0, 2.0])
    assert first.activations.activation is not None
    assert first.activations.activation(values).tolist() == [0.0, 2.0]
    assert values.tolist() == [-1.0, 2.0]  # in place elsewhere, not here


def test_what_cannot_be_proved_is_refused_by_name() -> None:
    tied = nn.Linear(4, 4)
    assert "no activation between it and 1" in why(nn.Linear(2, 3), nn.Linear(3, 2))
    assert "outgoing side is a norm, 2 (LayerNorm)" in why(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2))
    assert "goes through abs," in why(nn.Linear(2, 3), Bilu(), nn.Linear(3, 2))
    assert "two activations" in why(nn.Linear(2, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 2))
    assert "used 2 times" in why(tied, nn.ReLU(), tied, nn.ReLU(), nn.Linear(4, 1))
    assert "2 groups" in why(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2))
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    assert "used elsewhere too" in why(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(3, 1))


class Bilu(nn.Module):
    """Nobody knows what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class TwoReaders(nn.Module):
    """A skip connection around the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 2)), "3|2 .Linear. reads along another axis"),
        ((nn.Linear(3, 5), nn.ReLU(), nn.Conv1d(5, 2, 1)), "2 .Conv1d. reads along another axis"),
        ((nn.Linear(4, 8), nn.ReLU(), nn.AvgPool1d(3, 1, 1), nn.Linear(8, 2)), "2 .AvgPool1d. pools over its units"),
        ((nn.Linear(4, 6), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(6, 2)), r"1 normalises \(10,\), and there are 6"),
        ((nn.Conv2d(1, 4, 1), nn.LayerNorm(4), nn.ReLU(), nn.Conv2d(4, 2, 1)), "1 normalises along another axis"),
        ((nn.Linear(4, 6), nn.LayerNorm((5, 6)), nn.ReLU(), nn.Linear(6, 2)), r"1 normalises \(5, 6\)"),
        ((weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)), "0 has a weight that is computed from other"),
        ((nn.Linear(4, 6), nn.ReLU(), spectral_norm(nn.Linear(6, 2))), "2 has a weight that is computed from other"),
    ],
)
def test_units_lie_along_the_axis_that_is_read(layers: tuple[nn.Module, ...], reason: str) -> None:
    units, refused = find_units(nn.Sequential(*layers))
    assert units == []
    assert re.search(reason, refused["0"])


def test_a_norm_over_tokens_that_are_as_many_as_units_is_seen_as_it_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    observer = Observer(model, find_units(model).units, peaks, torch.maximum)
    observer.attach()
    model(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"2 gives values of shape \(5, 6, 6\), where 2 axes are expected"):
        model(torch.randn(5, 6, 4))


class Functional(nn.Module):
    """Uses a weight beside its module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.b(F.relu(self.a(x))), self.a.weight)


def test_a_weight_that_is_used_without_its_module_is_seen() -> None:
    units, refused = find_units(Functional())
    assert units == []
    assert refused["a"] == "a.weight is used elsewhere too"


class Autoencoder(nn.Module):
    """The forward pass of a LightningModule is often its encoder alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def test_what_the_forward_pass_does_not_reach_is_searched_too() -> None:
    assert [(of.name, of.proved_of) for of in find_units(Autoencoder()).units] == [
        ("encoder.0", ""),
        ("decoder.0", "decoder"),
    ]


def test_a_second_reader_is_seen() -> None:
    units, refused = find_units(TwoReaders())
    assert units == []
    assert refused["a"] == "2 others read the output of relu"
    assert "add" in refused["b"]


def test_a_layer_of_two_modules_has_no_units() -> None:
    layer = nn.Linear(2, 3)
    both = nn.ModuleDict(
        {
            "one": nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 1)),
            "other": nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 2)),
        }
    )
    units, refused = find_units(both)
    assert units == []
    assert refused["one.0"] == "one.0 is held by several modules, and so may be used by several paths"
    twice = nn.ModuleDict({"one": both["one"], "again": both["one"]})
    assert [of.name for of in find_units(twice).units] == ["one.0"]


def test_residual_blocks_of_a_u_net_have_their_middle_channels() -> None:
    network = unet()
    units, refused = find_units(network)
    blocks = [name for name, module in network.named_modules() if type(module).__name__ == "ResnetBlock2D"]
    assert sorted(of.name for of in units) == sorted(f"{name}.conv1" for name in blocks)
    assert any("to_q" in name for name in refused)
    (of, *_) = units
    assert of.mixes.endswith("norm2")
    assert any(part.tensor.endswith("time_emb_proj.weight") for part in of.incoming)
    for of in units:
        of.check(network)


@pytest.mark.parametrize("kind", ["geglu", "gelu", "geglu-approximate", "swiglu", "linear-silu"])
def test_a_feed_forward_block_has_its_hidden_units(kind: str) -> None:
    from diffusers.models.attention import FeedForward

    block = FeedForward(6, activation_fn=kind)
    (of,) = find_units(block).units
    of.check(block)
    gated = kind in ("geglu", "swiglu")
    assert of.count == 24
    assert len(of.incoming) == (2 if gated else 1)
    x = torch.randn(2, 5, 6)
    before = block(x)
    with torch.no_grad():
        block.net[2].weight[:, 7] = 0
    assert not torch.equal(block(x), before)


def test_a_transformer_has_the_units_of_its_feed_forward_parts() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert [of.name for of in find_units(model).units] == ["layers.0.linear1", "layers.1.linear1"]
    within = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 8), model, nn.Linear(8, 1))})
    assert [of.name for of in find_units(within).units] == ["net.1.layers.0.linear1", "net.1.layers.1.linear1"]
    odd = nn.TransformerEncoderLayer(8, 2, 16, activation=torch.tanh)
    assert "is not known when it fires" in find_units(odd).refused[""]


def test_units_given_by_hand_are_looked_over() -> None:
    with pytest.raises(ValueError, match="0 outgoing"):
        Units("0", 3, (Slice("0.weight"),), (), Site("0"))
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    good = find_units(model).units[0]
    bad = Units("0", 4, good.incoming, good.outgoing, good.activations)
    with pytest.raises(ValueError, match=r"4 entries of '0.weight' along axis 0 are asked for, and there are 3"):
        bad.check(model)
    with pytest.raises(ValueError, match="no submodule 'nowhere'"):
        Units("0", 3, good.incoming, good.outgoing, Site("nowhere")).check(model)
