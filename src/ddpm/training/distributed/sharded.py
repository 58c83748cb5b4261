"""Saves of many processes: put together by the main one, or, for models that none can hold, every process's own part beside the others'.

    run/step-0002000/   model.part-00001-of-00002.safetensors, model.part-00002-of-00002.safetensors, ..., state.json and manifest.json

The one module that speaks to torch.distributed.checkpoint. Of it the safetensors form is used, whose headers say where in the whole tensor
a part belongs: its other form carries pickles. Parts are read only out of a verified folder, and only those its manifest names. The folder
must be one that all processes see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import CheckpointError, NonFiniteError
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.storage import Record
from ddpm.training.checkpoints.tensors import check_fit, is_finite
from ddpm.training.distributed.parallel import gathered, is_part, like, local
from ddpm.training.distributed.world import World


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Mapping[str, Any]],
    *,
    world: World,
    parts: bool,
    keep: int | None = None,
    keep_best: int = 0,
    notice: Callable[[str], None] = checkpoint.to_stderr,
) -> Path:
    """`checkpoint.save` by all ranks together, with the same promises; with `parts` each writes what it holds, and none more than that.

    Raises what `checkpoint.save` raises, on every rank.
    """
    if not parts or world.size == 1:
        ready = {name: gathered(group, world) for name, group in tensors.items()}
        return world.on_main(lambda: checkpoint.save(run, step, ready, documents, keep=keep, notice=notice, keep_best=keep_best))
    folder = Path(run) / f"step-{step:07d}"
    texts = {f"{name}.json": storage.to_json(document, f"{name}.json") for name, document in documents.items()}
    checkpoint.check_request(step, [*texts, *(f"{name}.safetensors" for name in tensors)], keep)
    held = world.everywhere(lambda: {name: _held(group, f"step {step}, {name}") for name, group in tensors.items()})
    need = sum(map(len, texts.values())) + sum(t.numel() * t.element_size() + 256 for group in tensors.values() for t in group.values())
    staged = Path(world.on_main(lambda: str(storage.aside(folder))))

    def begin() -> None:
        with checkpoint.attempt(staged, run, step, need):
            checkpoint.begin(staged, run, step, need, notice)

    def commit() -> Path:
        with checkpoint.attempt(staged, run, step, need):
            checkpoint.commit(staged, folder, step, files, texts)
        checkpoint.publish(run, step, folder, keep, keep_best, notice)
        return folder

    world.on_main(begin)
    try:
        own: dict[str, Record] = {}
        for name, group in held.items():
            own |= _write(staged, name, group, world, run, step, need)
        files = {file: record for rank in world.gather(own) for file, record in rank.items()}
    except BaseException:
        if world.main:
            with suppress(OSError):
                storage.remove(staged)
        raise
    return world.on_main(commit)


def _held(group: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors, none sharing memory with another; NonFiniteError where this rank's part of one is not finite."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in group.items():
        tensor = tensor.detach()
        if not is_finite(local(tensor)):
            raise NonFiniteError(f"{what}: tensor {name!r} holds NaN or infinity; it was not saved, earlier checkpoints are intact")
        pointer = local(tensor).untyped_storage().data_ptr()
        found[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return found


def _write(staged: Path, name: str, group: Mapping[str, Tensor], world: World, run: Path, step: int, need: int) -> dict[str, Record]:
    """Write this rank's part of a group; its file and what the manifest will say of it, where there is anything of it here."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    def take() -> dict[str, Record]:
        theirs = list(staged.glob(f"shard-{world.rank + 1:05d}-*.safetensors"))
        if not theirs:
            return {}
        path = staged / f"{name}.part-{world.rank + 1:05d}-of-{world.size:05d}.safetensors"
        with checkpoint.attempt(staged, run, step, need):
            os.replace(theirs[0], path)  # torch gives every group the same name
            return {path.name: storage.digest(path)}

    with checkpoint.attempt(staged, run, step, need), _told("written"):
        writer = HuggingFaceStorageWriter(str(staged), save_distributed=True)
        state_dict_saver.save(dict(group), storage_writer=writer, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
        storage.boundary(f"parts of {name}")
    return world.everywhere(take)


@contextmanager
def _told(done: str) -> Iterator[None]:
    """Turns torch's CheckpointException, which no `except Exception` sees, into the OSError or the failure of some rank behind it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (found, _) = min(error.failures.items(), key=lambda failure: not isinstance(failure[1][0], OSError))
        if isinstance(found, OSError) or not isinstance(found, Exception):
            raise found from error
        reason = f"{type(found).__name__} {found}".splitlines()[0]
        raise CheckpointError(f"parts of a checkpoint cannot be {done} on rank {rank}: {reason}") from error


# reading ---------------------------------------------------------------------------------------------


def _reader(saved: Checkpoint, name: str) -> Any:
    """Torch's reader of the parts of a group, which sees no file but these."""
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    class Named(FileSystem):
        def ls(self, path: str | os.PathLike[str]) -> list[str]:
            return [str(saved.path / part) for part in saved.parts(name)]

    reader = HuggingFaceStorageReader(str(saved.path))
    reader.fs = Named()
    return reader


def described(saved: Checkpoint, name: str) -> dict[str, Tensor]:
    """Shapes and kinds of the tensors saved in parts under a name, as tensors without content; CheckpointError where a piece is missing."""
    try:
        entries = _reader(saved, name).read_metadata().state_dict_metadata
    except Exception as error:  # torch asserts, safetensors has its own types
        raise CheckpointError(f"{saved.path}: parts of {name} cannot be read: {type(error).__name__} {error}") from error
    for key, entry in entries.items():
        count = sum(chunk.sizes.numel() for chunk in entry.chunks)
        if count != entry.size.numel():
            raise CheckpointError(f"{saved.path}: {name}, {key}: {count} numbers of {entry.size.numel()} are there")
    return {key: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta") for key, entry in entries.items()}


def restore(saved: Checkpoint, name: str, targets: Mapping[str, Tensor]) -> None:
    """Copy the tensors saved under a name into these, sharded or not; called by all ranks.

    Of parts each rank reads what it needs. CheckpointError where names, shapes or kinds differ, with nothing changed.
    """
    if saved.parts(name):
        check_fit(targets, described(saved, name), name)
        _fill(saved, name, targets)
        return
    tensors = saved.tensors(name)
    check_fit(targets, tensors, name)
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(like(tensors[key], target))


def _fill(saved: Checkpoint, name: str, targets: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint import state_dict_loader

    try:
        with _told("read"), torch.no_grad():
            state_dict_loader.load(dict(targets), storage_reader=_reader(saved, name))
    except OSError as error:
        raise CheckpointError(f"{saved.path}: {name} cannot be read: {error.strerror or error}") from error


def restore_optimizer(saved: Checkpoint, document: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load the saved state, whole or in parts, into the optimizer of sharded parameters; called by all ranks. Raises: CheckpointError."""
    owners: Sequence[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = bool(saved.parts("optimizer"))
    state = checkpoint.unflatten(described(saved, "optimizer") if parts else saved.tensors("optimizer"), document)
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                entry[key] = _placed(value, owners[index], parts)
    if parts:
        _fill(saved, "optimizer", checkpoint.flatten(state)[0])
    optimizer.load_state_dict(state)


def _placed(value: Tensor, owner: Tensor, empty: bool) -> Tensor:
    """A tensor of an optimizer's state in the layout of the parameter it belongs to; where empty, room for it."""
    if not is_part(owner) or value.shape != owner.shape:
        return torch.zeros(value.shape, dtype=value.dtype) if empty else value
    return torch.zeros_like(owner.detach(), dtype=value.dtype) if empty else like(value, owner)
