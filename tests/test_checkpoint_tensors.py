"""Nested states and weights: made flat and back without loss, loaded whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.errors import CheckpointError
from ddpm.training.checkpoints import tensors
from ddpm.training.checkpoints.checkpoint import flatten, load_into, newest, save, unflatten


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adam amsgrad"])
def test_optimizer_continues_bit_identically(tmp_path: Path, kind: str) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        groups = [{"params": model[0].parameters(), "lr": 0.1 / 3}, {"params": model[1].parameters()}]
        if kind == "SGD":
            return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return model, (torch.optim.AdamW if kind == "AdamW" else torch.optim.Adam)(groups, lr=0.1, amsgrad=kind != "AdamW")

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()

    straight, optimizer = build()
    train(straight, optimizer, range(3))
    flat, document = flatten(optimizer.state_dict())
    save(tmp_path, 3, {"model": straight.state_dict(), "optimizer": flat}, {"state": {"optimizer": document}})
    train(straight, optimizer, range(3, 6))

    resumed, other = build()
    found = newest(tmp_path)
    assert found
    load_into(resumed, found.tensors("model"), "step 3: model")
    other.load_state_dict(unflatten(found.tensors("optimizer"), found.document("state")["optimizer"]))
    train(resumed, other, range(3, 6))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_flatten_keeps_types_order_and_every_float() -> None:
    x, y = torch.ones(2), torch.zeros(1)
    state: dict[Any, Any] = {
        "b": 1,
        0: {"x": x, "1": (1, 2.0, [None, True, "s"])},
        "0": {"x": y},
        "a": [math.inf, -math.inf, 0.1 + 0.2, 5e-324, -0.0],
        "": {},
        "t": (),
        "p": {"q.r": x, "q": {"r": y}},
    }
    flat, document = flatten(state)
    document = json.loads(json.dumps(document, allow_nan=False))
    back = unflatten(flat, document)
    assert list(back) == list(state) and [type(key) for key in back] == [type(key) for key in state]
    assert repr(back) == repr(state)
    assert math.isnan(unflatten(*flatten({"n": math.nan}))["n"])
    with pytest.raises(TypeError, match=r"'a\.0'.*object"):
        flatten({"a": [object()]})
    with pytest.raises(TypeError, match=r"key 1.5 is float"):
        flatten({1.5: 1})


def test_unflatten_refuses_parts_that_do_not_belong_together() -> None:
    flat, document = flatten({"a": torch.ones(1), "b": torch.ones(1)})
    for tensors_, document_ in [
        ({"a": flat["a"]}, document),
        ({**flat, "c": flat["a"]}, document),
        (flat, {}),
        (flat, {"state": {"dict": 3}}),
        (flat, {"state": {"evil": "os.system"}}),
        (flat, {"state": [1]}),
        ({}, {"state": 1}),
        ({}, {"state": {"float": "1"}}),
    ]:
        with pytest.raises(CheckpointError, match=r"stored state"):
            unflatten(tensors_, document_)


def test_load_into_lists_every_difference_and_loads_nothing() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 3) for _ in range(8)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {name: torch.full((5, 2), 7.0) if name.endswith("weight") else torch.full((3,), 7.0) for name in before}
    del given["3.bias"]
    given["extra"] = torch.ones(1)
    given["4.bias"] = torch.ones(3, dtype=torch.int64)
    with pytest.raises(CheckpointError) as caught:
        load_into(model, given, "step 9: model")
    text = str(caught.value)
    assert text.startswith("step 9: model does not fit the model; nothing was loaded")
    assert "1 missing: 3.bias" in text and "1 unexpected: extra" in text and "4.bias: saved torch.int64, model has torch.float32" in text
    assert "8 of another shape: 0.weight: saved (5, 2), model has (3, 2)" in text and "and 3 more" in text and "5.weight" not in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    load_into(model, {name: tensor.bfloat16() for name, tensor in before.items()}, "half")
    assert model[0].weight.dtype == torch.float32


def test_finite_check_looks_at_floats_only() -> None:
    assert all(tensors.is_finite(torch.ones(2, dtype=dtype)) for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn, torch.float16))
    assert tensors.is_finite(torch.zeros(0)) and tensors.is_finite(torch.full((2,), 3e38)) and not tensors.is_finite(torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": None}, "1 missing: weight"),
        ({"other": torch.ones(1)}, "1 unexpected: other"),
        ({"bias": torch.ones(2)}, r"bias: saved \(2,\), model has \(3,\)"),
        ({"bias": torch.ones(3).bool()}, "bias: saved torch.bool, model has torch.float32"),
    ],
)
def test_one_difference_is_enough(change: dict[str, torch.Tensor | None], said: str) -> None:
    model = torch.nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {name: tensor + 1 for name, tensor in before.items()} | change
    with pytest.raises(CheckpointError, match=said):
        load_into(model, {name: tensor for name, tensor in given.items() if tensor is not None}, "model")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
