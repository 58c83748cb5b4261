"""Tensors on their way to and from a checkpoint: nested states made flat, and weights put into a module whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes

from ddpm.errors import CheckpointError, NonFiniteError
from ddpm.training.checkpoints import storage

SHOWN = 5  # entries of a list of differences that are spelled out


def snapshot(tensors: Mapping[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """The tensors as safetensors takes them: dense, on the CPU, none sharing memory with another.

    Raises: NonFiniteError naming the first tensor that holds a NaN or an infinity.
    """
    result: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach()
        if not is_finite(plain):
            raise NonFiniteError(f"{what}: tensor {name!r} holds NaN or infinity; it was not saved, earlier checkpoints are intact")
        plain = plain.cpu().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        if pointer in seen:  # tied weights, views: each name gets its own copy
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; integers and booleans always are finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # the 8-bit floats have no isfinite of their own
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file of what `snapshot` returned."""
    return safetensors_bytes(dict(tensors), metadata={"format": "pt"})


def join(contents: Iterable[bytes]) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files that each hold some rectangles of them; the headers say where those lie, as torch writes them.

    Raises: CheckpointError for a file that is none, and for tensors of which something is missing or there twice.
    """
    pieces: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for content in contents:
        try:
            held = safetensors_load(content)
            header = storage.from_json(content[8 : 8 + int.from_bytes(content[:8], "little")], "header")
            places = storage.from_json(header["__metadata__"]["DCP_SHARDING_INFO"].encode(), "DCP_SHARDING_INFO")
            for name, tensor in held.items():
                pieces.setdefault(name, []).append(([int(start) for start in places[name]["saved_offsets"]], tensor))
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"not a part of a checkpoint: {type(error).__name__} {error}") from error
    return {name: _joined(name, held) for name, held in pieces.items()}


def _joined(name: str, pieces: Sequence[tuple[Sequence[int], torch.Tensor]]) -> torch.Tensor:
    first = pieces[0][1]
    if any(len(start) != piece.ndim or piece.ndim != first.ndim or min(start, default=0) < 0 for start, piece in pieces):
        raise CheckpointError(f"{name}: its parts have different numbers of axes")
    shape = [max(start[axis] + piece.shape[axis] for start, piece in pieces) for axis in range(first.ndim)]
    count = sum(piece.numel() for _, piece in pieces)
    if count != math.prod(shape):
        raise CheckpointError(f"{name}: {count} numbers of {math.prod(shape)} are there, as shape {tuple(shape)} needs")
    result = torch.empty(shape, dtype=first.dtype)
    for start, piece in pieces:
        result[tuple(slice(low, low + size) for low, size in zip(start, piece.shape, strict=True))] = piece
    return result


# nested states -------------------------------------------------------------------------------------


def flatten(state: Mapping[Any, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split a nested state (`optimizer.state_dict()`) into tensors by name and a JSON document of all the rest.

    Dictionaries keep the type and the order of their keys (text or integers), lists and tuples stay what they were, floats come back bit
    for bit, infinities and NaN outside tensors included. `unflatten` is the exact inverse.

    Raises: TypeError naming the entry that is none of: tensor, dict, list, tuple, str, int, float, bool, None.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, {"state": _encode(state, "", tensors)}


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = where
        while name in tensors:  # {"a.b": x, "a": {"b": y}} must not fall together
            name += "_"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_key(key, where), _encode(entry, _join(where, key), tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        entries = [_encode(entry, _join(where, index), tensors) for index, entry in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": entries}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"state entry {where or 'root'!r}: {type(value).__name__} cannot be stored without pickle")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):
        raise TypeError(f"state entry {where or 'root'!r}: key {key!r} is {type(key).__name__}, expected text or an integer")
    return key


def unflatten(tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any]) -> dict[Any, Any]:
    """The nested state that `flatten` split.

    Raises: CheckpointError where the two parts do not belong together or the document is not of this form.
    """
    unused = set(tensors)
    try:
        state = _decode(document["state"], tensors, unused)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"stored state cannot be put together: {type(error).__name__} {error}") from error
    if unused:
        raise CheckpointError(f"stored state does not mention {len(unused)} of its tensors: {_first(sorted(unused))}")
    if not isinstance(state, dict):
        raise CheckpointError(f"stored state is a {type(state).__name__}, expected a dictionary")
    return state


def _decode(node: Any, tensors: Mapping[str, torch.Tensor], unused: set[str]) -> Any:
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ValueError("list without a kind")
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        unused.discard(content)
        return tensors[content]
    if kind == "dict":
        return {key: _decode(entry, tensors, unused) for key, entry in content}
    if kind in ("list", "tuple"):
        entries = [_decode(entry, tensors, unused) for entry in content]
        return tuple(entries) if kind == "tuple" else entries
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    raise ValueError(f"unknown kind {kind!r}")


# into a module -------------------------------------------------------------------------------------


def load_into(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy weights into a module of exactly the same names and shapes, or change nothing.

    `what` names the weights in the message: "step 200: ema-0.999". Precision may differ (bfloat16 into float32), kinds may not (integers
    into floats).

    Raises: CheckpointError listing the first five missing, unexpected and differently shaped tensors, with both shapes.
    """
    check_fit(module.state_dict(), tensors, what)
    module.load_state_dict(dict(tensors), strict=True)


def check_fit(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Whether tensors have the names, shapes and kinds that are expected. Raises: CheckpointError, as `load_into`."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    both = [(name, tensors[name], expected[name]) for name in expected if name in tensors]
    shapes = [f"{n}: saved {_shape(a)}, model has {_shape(b)}" for n, a, b in both if a.shape != b.shape]
    kinds = [f"{n}: saved {a.dtype}, model has {b.dtype}" for n, a, b in both if a.shape == b.shape and _kind(a) != _kind(b)]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another kind": kinds}
    if any(found.values()):
        lines = [f"  {len(names)} {title}: {_first(names)}" for title, names in found.items() if names]
        raise CheckpointError("\n".join([f"{what} does not fit the model; nothing was loaded", *lines]))


def _first(names: Sequence[str]) -> str:
    return "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _kind(tensor: torch.Tensor) -> str:
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"
