from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_flatten

from cl_diffusion.linalg import (
    BlockDiagonal,
    Diagonal,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    OperatorSum,
    Provenance,
    load_operator,
    operator_from_state,
    save_operator,
)

PROVENANCE = Provenance(
    {"estimator": "test", "loss_reduction": "mean over elements"},
    ({"samples": 3, "seed": 0, "bands": [0.1, 0.9], "task": None}, {"spread": {"half": 0.1, "whole": True}}),
)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def diagonal() -> Diagonal:
    values = {"net.weight": normal(3, 2, seed=0, dtype=torch.float32).abs(), "net.bias": normal(3, seed=1).abs()}
    return Diagonal(values, PROVENANCE)


def low_rank() -> LowRank:
    return LowRank({"head": normal(2, 4, seed=2, dtype=torch.float32)}, torch.tensor([1.0, 0.3]), PROVENANCE)


def kronecker(bias: str | None) -> Kronecker:
    size = 18 + (bias is not None)
    a, b = normal(size, size, seed=3), normal(4, 4, seed=4)
    return Kronecker.from_factors("conv.weight", bias, (4, 2, 3, 3), a @ a.T, b @ b.T, PROVENANCE)


def operators() -> dict[str, Operator]:
    identity = Identity({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, 0.1, PROVENANCE)
    block = BlockDiagonal([kronecker("conv.bias"), diagonal()], PROVENANCE)
    return {
        "identity": identity,
        "diagonal": diagonal(),
        "low rank": low_rank(),
        "kronecker": kronecker(None),
        "kronecker with a bias": kronecker("conv.bias"),
        "block": block,
        "sum": OperatorSum([diagonal(), low_rank()], PROVENANCE),
        "nested": OperatorSum([BlockDiagonal([block, OperatorSum([low_rank(), identity])]), low_rank()], PROVENANCE),
    }


def check_same(a: Operator, b: Operator) -> None:
    """Equal bit for bit, types and order included."""
    (leaves, structure), (others, other) = tree_flatten(a.state()), tree_flatten(b.state())
    assert type(a) is type(b)
    assert a.names == b.names
    assert structure == other
    for x, y in zip(leaves, others, strict=True):
        assert type(x) is type(y)
        assert (x.dtype == y.dtype and torch.equal(x, y)) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("kind", operators())
def test_what_is_saved_is_loaded_bit_for_bit_with_its_provenance(kind: str, tmp_path: Path) -> None:
    operator = operators()[kind]
    save_operator(operator, tmp_path / "importance.safetensors")
    loaded = load_operator(tmp_path / "importance.safetensors")
    check_same(loaded, operator)
    assert loaded.provenance == PROVENANCE


@pytest.mark.parametrize("kind", operators())
def test_the_state_survives_a_weights_only_checkpoint_bit_for_bit(kind: str) -> None:
    operator = operators()[kind]
    buffer = io.BytesIO()
    torch.save(operator.state(), buffer)
    buffer.seek(0)
    check_same(operator_from_state(torch.load(buffer, weights_only=True)), operator)


@pytest.mark.parametrize("names", [("tensor", "kind", "a/b", "/a", ""), ("tensor",), ("parts",)])
def test_a_parameter_may_have_any_name(names: tuple[str, ...], tmp_path: Path) -> None:
    values = {name: torch.full((2,), float(index)) for index, name in enumerate(names)}
    operator = Diagonal(values, Provenance({}, ({"tensor": "of a layer", "kind": "odd"},)))
    save_operator(operator, tmp_path / "f")
    check_same(load_operator(tmp_path / "f"), operator)


def test_a_reader_of_safetensors_finds_every_tensor_under_a_name_that_says_what_it_is(tmp_path: Path) -> None:
    operator = BlockDiagonal([diagonal(), kronecker("conv.bias")])
    save_operator(operator, tmp_path / "f")
    tensors = load_file(tmp_path / "f")
    for ending, expected in {
        "parts/0/values/net.weight": operator.parts[0].values["net.weight"],
        "parts/0/values/net.bias": operator.parts[0].values["net.bias"],
        "parts/1/inputs": operator.parts[1].inputs,
        "parts/1/outputs": operator.parts[1].outputs,
        "parts/1/values": operator.parts[1].values,
    }.items():
        (name,) = [name for name in tensors if name == ending]
        assert torch.equal(tensors[name], expected)
    assert len(tensors) == 5


@pytest.mark.parametrize("kind", operators())
def test_the_header_is_json_that_says_kind_and_provenance(kind: str, tmp_path: Path) -> None:
    operator = operators()[kind]
    save_operator(operator, tmp_path / "f")
    with safe_open(tmp_path / "f", framework="pt") as file:
        header = json.loads(file.metadata()["cl_diffusion.operator"])
    assert header["kind"] == operator.kind
    assert header["provenance"]["identity"] == dict(PROVENANCE.identity)
    assert header["provenance"]["record"][0]["samples"] == 3


def test_columns_that_share_memory_or_are_strided_are_saved_whole(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    operator = Diagonal({"whole": shared, "part": shared[:, 1], "transposed": shared.T})
    save_operator(operator, tmp_path / "f")
    check_same(load_operator(tmp_path / "f"), operator)


def test_an_identity_that_differs_is_refused_and_the_field_is_named(tmp_path: Path) -> None:
    save_operator(diagonal(), tmp_path / "f")
    check_same(load_operator(tmp_path / "f", {"estimator": "test"}), diagonal())
    check_same(load_operator(tmp_path / "f", PROVENANCE.identity), diagonal())
    with pytest.raises(ValueError, match="'loss_reduction' is 'mean over elements', expected 'sum over elements'"):
        load_operator(tmp_path / "f", {"estimator": "test", "loss_reduction": "sum over elements"})
    with pytest.raises(ValueError, match="'prediction' is None, expected 'epsilon'"):
        load_operator(tmp_path / "f", {"prediction": "epsilon"})


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused_and_named(kept: int, tmp_path: Path) -> None:
    save_operator(diagonal(), tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:kept])
    with pytest.raises(ValueError, match="cut' holds no operator"):
        load_operator(tmp_path / "cut")


def test_a_file_that_is_no_operator_is_refused_and_named(tmp_path: Path) -> None:
    save_file({"values/a": torch.ones(2)}, tmp_path / "plain")
    save_file({"values/a": torch.ones(2)}, tmp_path / "foreign", metadata={"format": "pt"})
    torch.save(diagonal().state(), tmp_path / "pickle")
    (tmp_path / "text").write_text("no operator, but long enough to hold the length of a header")
    for name in ("plain", "foreign", "pickle", "text"):
        with pytest.raises(ValueError, match=f"{name}' holds no operator"):
            load_operator(tmp_path / name)


def test_an_unknown_kind_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match="kind='odd'.*block_diagonal.*kronecker.*low_rank.*sum"):
        operator_from_state({**diagonal().state(), "kind": "odd"})


def test_a_second_save_replaces_the_first_and_nothing_else_is_left(tmp_path: Path) -> None:
    for operator in (low_rank(), diagonal()):
        save_operator(operator, str(tmp_path / "f"))
        assert [path.name for path in tmp_path.iterdir()] == ["f"]
    check_same(load_operator(str(tmp_path / "f")), diagonal())


def test_a_save_that_dies_half_way_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_operator(diagonal(), tmp_path / "f")

    def dies(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", dies)
    with pytest.raises(OSError, match="no space left"):
        save_operator(low_rank(), tmp_path / "f")
    check_same(load_operator(tmp_path / "f"), diagonal())


def test_a_record_may_hold_a_mapping_whose_only_field_is_tensor(tmp_path: Path) -> None:
    operator = Diagonal({"a": torch.ones(2)}, Provenance({"tensor": "x"}))
    save_operator(operator, tmp_path / "f")
    assert load_operator(tmp_path / "f").provenance == operator.provenance


def test_a_save_that_fails_leaves_nothing_beside_the_place(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_operator(Diagonal({"a": torch.ones(2)}), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


NOWHERE = '"provenance": {"identity": {}, "record": []}'


@pytest.mark.parametrize(
    "header",
    [
        "nonsense",
        "{}",
        "[]",
        f'{{"kind": "diagonal", "tensors": {{"odd": 1}}, {NOWHERE}}}',
        f'{{"kind": "diagonal", "tensors": {{"values": {{"a": {{"$tensor": "b"}}}}}}, {NOWHERE}}}',
        f'{{"kind": "diagonal", "tensors": {{"values": {{"a": {{"b": 1}}}}}}, {NOWHERE}}}',
    ],
)
def test_a_header_that_describes_no_operator_is_refused(header: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "f", metadata={"cl_diffusion.operator": header})
    with pytest.raises(ValueError, match="holds no operator"):
        load_operator(tmp_path / "f")
