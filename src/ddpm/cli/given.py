"""`--given`: the pictures, or other condition images, that samples are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpm.config import check, setting
from ddpm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ddpm.data import DataSettings
    from ddpm.denoiser import NetworkDenoiser

HELD_OUT = "held-out"
EACH = 4  # samples of each held-out picture, unless it is said
SUFFIXES = (".npy", ".npz", ".safetensors")


class Dealt(NamedTuple):
    """The condition images (M, Ci, *axes), which of them each of the n samples is drawn from (n,), and of held-out ones the class of each
    and where its sample has entries (M, 1 or C, *axes), where the data say so.
    """

    images: torch.Tensor
    which: torch.Tensor
    classes: torch.Tensor | None = None
    masks: torch.Tensor | None = None

    def cond(self, cond: Mapping[str, torch.Tensor] | None, named: bool) -> dict[str, torch.Tensor]:
        """The conditions of the n samples: the picture's own mask, and of a class that was not named, its own."""
        own = {} if self.classes is None or named else {"class": self.classes[self.which]}
        own |= {} if self.masks is None else {"mask": self.masks[self.which]}
        return {**(cond or {}), **own, "image": self.images[self.which]}

    def shown(self, model: NetworkDenoiser) -> NDArray[Any] | None:
        """The images as samples of the model are seen, (M, *shape) in their units; None where they are no such thing."""
        shape = model.shape
        if self.images.shape[1] not in (1, shape[0]) or len(shape) != 3 or model.given is None:
            return None
        return model.codec.decode(self.images.expand(-1, shape[0], *shape[1:])).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Givens:
    """What samples of a model with a condition image are drawn from."""

    source: str | None = setting(
        None,
        "of a model trained with a condition image: picture, folder, row of data (photos/:12), or array of condition images; none, or "
        "held-out: pictures kept out of training",
        flag="given",
        group="what",
    )

    def __post_init__(self) -> None:
        check(self)

    def deal(self, n: int, model: NetworkDenoiser, document: Mapping[str, Any], run: str) -> Dealt | None:
        """The images dealt evenly over n samples, in order; None of a model that has none.

        Raises:
            ConfigError: named for a model that is drawn from noise alone.
            DataError: nothing there, or nothing that fits the model.
        """
        import torch

        channels = document["cond"]["image"]
        if not channels:
            if self.source is not None:
                raise ConfigError("--given: this model was trained without a condition image; vary a picture with --from")
            return None
        if self.source is None or self.source == HELD_OUT:
            images, classes, there = held_out(-(-n // EACH), model, channels, run)
        else:
            images, classes, there = torch.cat([image_of(text, model, channels, run) for text in listed(self.source)]), None, None
        count = min(len(images), n)
        return Dealt(images[:count], torch.arange(n) * count // n, classes, there)


def listed(source: str) -> list[str]:
    """The pictures of a folder, or the one thing that was named."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return [source]
    from ddpm.data.names import is_picture, natural

    found = sorted((path.name for path in folder.iterdir() if is_picture(path.name)), key=natural)
    if not found:
        raise DataError(f"--given: {source} holds no pictures")
    return [str(folder / name) for name in found]


def held_out(count: int, model: NetworkDenoiser, channels: int, run: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The condition images of at most `count` samples held out of the run's training, evenly among them, their classes and masks."""
    import torch

    what = f"this model needs a condition image of {channels} channels beside each sample: name what samples are drawn from"
    cond = conditions_of(count, model, run, f"{what}, --given PICTURE or FILE.npy")
    classes, there = (torch.from_numpy(cond[key]) if key in cond else None for key in ("class", "mask"))
    return torch.from_numpy(cond["image"]).float(), classes, None if there is None else there != 0


def masks(n: int, model: NetworkDenoiser, run: str) -> torch.Tensor:
    """Where n samples have entries, (n, 1 or C, *axes) bool: as held-out samples of the run's data have, in turn."""
    import torch

    what = 'this model must be told which entries its samples have; draw in Python: ddpm.sample(denoiser, n, cond={"mask": mask})'
    found = torch.from_numpy(conditions_of(n, model, run, what)["mask"]) != 0
    return found[torch.arange(n) % len(found)]


def conditions_of(count: int, model: NetworkDenoiser, run: str, otherwise: str) -> dict[str, NDArray[Any]]:
    """The conditions of at most `count` held-out samples of a run's own data, evenly among them; DataError, with what to do otherwise,
    where these are not there.
    """
    from ddpm.data import open_data
    from ddpm.data.dataset import evenly
    from ddpm.evaluation.scored import card_of
    from ddpm.training.classifier import run_data
    from ddpm.training.latents import diffused
    from ddpm.training.state import open_run

    try:
        data = diffused(open_data(run_data(open_run(run))), model)
    except DataError as error:
        raise DataError(f"{error}\n  {otherwise}") from error
    own = card_of(run)
    if own is not None and own.fingerprint != data.card.fingerprint:
        raise DataError(f"{data.card.name}: not the data {run} was trained on ({own.name}); {otherwise}")
    return data.conditions(evenly(data.held_rows if len(data.held_rows) else data.train_rows, count))


def image_of(text: str, model: NetworkDenoiser, channels: int, run: str) -> torch.Tensor:
    """The condition image (1, Ci, *axes), or of an array of them (M, Ci, *axes), that a text names."""
    import torch

    from ddpm.data.single_sample import read_one
    from ddpm.training.classifier import run_data
    from ddpm.training.state import open_run

    shape, given = model.shape, model.given
    if given is None:
        settings = run_data(open_run(run))
        if settings.beside is not None and Path(text).expanduser().suffix not in SUFFIXES:
            return beside_of(text, shape, channels, settings)
        return _array(text, (channels, *shape[1:]))
    small = small_of(text, model)
    if small is not None:
        return small
    raw = torch.from_numpy(read_one(text, shape, model.codec))
    return given(model.codec.encode(raw[None]).to(torch.float32))


def small_of(text: str, model: NetworkDenoiser) -> torch.Tensor | None:
    """What a picture of the very size that is given says, where it has that size."""
    import torch

    from ddpm.data.single_sample import read_one

    assert model.given is not None
    size = _size(text)
    if size is None or len(model.shape) != 3:
        return None
    shape = (model.shape[0], *size)
    if model.given.widened(torch.zeros(1, *shape), model.shape) is None:
        return None
    raw = torch.from_numpy(read_one(text, shape, model.codec))
    return model.given.widened(model.codec.encode(raw[None]).to(torch.float32), model.shape)


def _size(text: str) -> tuple[int, int] | None:
    """Height and width of a picture file; None of what is none, or cannot be read: `read_one` says what is wrong with it."""
    found = _header(text)
    return None if found is None else (found[0], found[1])


def _mode(text: str) -> str | None:
    found = _header(text)
    return None if found is None else found[2]


def _header(text: str) -> tuple[int, int, str] | None:
    from PIL import Image, UnidentifiedImageError

    path = Path(text).expanduser()
    if not path.is_file() or path.suffix in SUFFIXES:
        return None
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width, picture.mode
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def beside_of(text: str, shape: tuple[int, ...], channels: int, settings: DataSettings) -> torch.Tensor:
    """A picture as those that lay beside the samples in training, (1, Ci, H, W)."""
    import torch

    from ddpm.data.beside import image_condition
    from ddpm.data.single_sample import read_one, read_picture
    from ddpm.denoiser import Codec

    size = _size(text)
    if settings.beside_labels is not None and size not in (None, shape[1:]):
        raise DataError(f"--given: {text} is {size}; maps of labels are not resized, this model takes {shape[1:]}")
    if settings.beside_labels is not None and _mode(text) not in (None, "1", "L", "I;16"):
        raise DataError(f"--given: {text} has colours or a palette; maps of labels are grey, the label as the level")
    planes = channels if settings.beside_labels is None else 1
    asked = (planes, *shape[1:])
    if settings.beside_labels is not None:
        raw = read_picture(text, asked)[0]  # labels are what the file says, of however many bits
    else:
        raw = read_one(text, asked, Codec(shift=(32767.5,) * planes, scale=(32767.5,) * planes, dtype="uint16", bins=(0.0, 65535.0)))
    return torch.from_numpy(image_condition(raw[None], settings.beside_labels, text))


def _array(text: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    from ddpm.data.arrays import read_arrays

    path = Path(text).expanduser()
    if path.suffix not in SUFFIXES:
        raise DataError(f"--given: {text} is no array; this model takes condition images {shape} as .npy, .npz or .safetensors")
    found = read_arrays(path, "first").samples
    images = torch.from_numpy(found[:]).to(torch.float32)
    images = images[None] if tuple(images.shape) == shape else images
    if tuple(images.shape[1:]) != shape or not bool(images.isfinite().all()):
        raise DataError(f"--given: {text} holds {tuple(found.shape)}; this model takes condition images {shape}, all finite")
    return images
