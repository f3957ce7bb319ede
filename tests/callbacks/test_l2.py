from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cl_diffusion.callbacks import L2SP, L2Init
from tests.callbacks.stranger import Regression, fit_tasks, weights


def anchors(regularizer: L2SP | L2Init) -> list[Tensor]:
    (term,) = regularizer.terms
    return list(term.anchor.values())


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_l2_sp_is_held_to_where_each_task_starts_and_to_nothing_older() -> None:
    model, regularizer = Regression(), L2SP(0.5)
    for task in range(3):
        start = weights(model)
        fit_tasks(model, regularizer, tasks=(task,))
        assert same(anchors(regularizer), start)
        assert float(regularizer.terms[0].operator.trace()) == sum(w.numel() for w in start)


def test_l2_init_is_held_to_the_first_weights_and_what_comes_later_to_its_own() -> None:
    model, regularizer = Regression(), L2Init(0.5)
    start = weights(model)
    for task in range(2):
        fit_tasks(model, regularizer, tasks=(task,))
        assert same(anchors(regularizer), start)
    model.added = nn.Parameter(torch.full((2,), 7.0))
    fit_tasks(model, regularizer, tasks=(2,))
    (term,) = regularizer.terms
    assert torch.equal(term.anchor["added"], torch.full((2,), 7.0))


@pytest.mark.parametrize("first_task", [False, True])
def test_the_first_task_is_free_on_request(first_task: bool) -> None:
    held = fit_tasks(Regression(), L2SP(5.0, first_task=first_task), tasks=(0,))
    free = fit_tasks(Regression(), tasks=(0,))
    assert same(weights(held), weights(free)) != first_task
    both = [fit_tasks(Regression(), *r, tasks=(0, 1)) for r in ([L2SP(5.0, first_task=first_task)], [])]
    assert not same(*map(weights, both))
