"""What `ddpm sample` writes: single pictures as they are drawn; archives, array and field files, the grid and the prompts at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import ConfigError
from ddpm.evaluation.drawing.kept import Drawn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    from ddpm.cli.sample import SampleConfig
    from ddpm.denoiser.fields import Fields


def output_format(config: SampleConfig, shape: tuple[int, ...], fields: bool = False) -> str:
    """What samples of this shape are written as; ConfigError, before anything is drawn, for what they cannot be. fields: they are such."""
    if config.format in ("nc", "zarr") or (config.format == "auto" and fields):
        if not fields:
            raise ConfigError(f"--format {config.format}: this model draws no fields on a grid; use --format npz")
        return config.format if config.format != "auto" else "nc"
    picture = len(shape) == 3 and shape[0] in (1, 3)
    if config.format in ("png", "zip") and not picture:
        raise ConfigError(f"--format {config.format}: takes pictures of 1 or 3 channels, not {shape}; use --format npz or shards")
    if config.film and len(shape) not in (3, 4):
        raise ConfigError(f"--film: shows pictures and volumes, these samples are {shape}")
    if config.format == "auto":
        return "png" if picture else "npz"
    return config.format


class Output:
    """What a call writes: single pictures batch by batch; archives, the grid and the manifest at the end."""

    def __init__(
        self, config: SampleConfig, folder: Path, labels: NDArray[Any] | None, names: list[str], codec: Any, texts: list[str],
        given: tuple[NDArray[Any], NDArray[Any]] | None = None, fields: Fields | None = None,
    ) -> None:  # fmt: skip
        from ddpm.training.preview import limits

        self.texts = texts
        self.config, self.folder, self.labels, self.names, self.limits = config, folder, labels, names, limits(codec)
        self.given = given  # what samples were drawn from, in their units, and which of it each one was
        self.fields = fields
        self.mask: NDArray[Any] | None = None  # which entries of each sample are there, where some are not
        several = labels is not None and len(set(labels.tolist())) > 1
        self.folders = [names[label] for label in labels] if labels is not None and several else None

    def batch(self, first: int, drawn: NDArray[Any]) -> None:
        """Single pictures of the samples that begin with number `first`, where the format asks for them."""
        from ddpm.data.export import save_pngs

        if output_format(self.config, drawn.shape[1:], self.fields is not None) == "png":
            inner = None if self.folders is None else self.folders[first : first + len(drawn)]
            save_pngs(drawn, self.limits, self.folder, inner, first)

    def all(self, drawn: Drawn) -> list[Path]:
        """What is made of all samples, of which an array file alone needs all in memory; everything that was written."""
        from ddpm.data.bulk import save_shards, save_zip
        from ddpm.data.export import as_pictures, grid, save_npz, save_picture

        n, labels, shape = self.config.n, self.labels, drawn.shape
        kind, written = output_format(self.config, shape, self.fields is not None), [self.folder]
        if kind == "npz":
            sides = "x".join(map(str, (n, *shape[1:], shape[0])))
            written = [save_npz(drawn.all(), labels, self.folder / f"samples_{sides}.npz")]
        elif kind == "zip":
            written = [save_zip(drawn.parts(), self.limits, labels, self.folder / f"samples_{n}.zip")]
        elif kind == "shards":
            written = save_shards(drawn.parts(), self.limits, labels, self.folder, self.config.shard)
        elif self.fields is not None and kind in ("nc", "zarr"):
            import numpy as np

            from ddpm.data.field_files import sampled, write

            notes = {"title": "samples of fields", "source": f"ddpm sample, seed {self.config.seed}"}
            whole = drawn.all() if self.mask is None else np.where(self.mask, drawn.all(), np.nan)
            written = [write(sampled(self.fields, whole, notes), self.folder / f"samples_{n}.{kind}")]
        written += self._prompts(kind)
        if self.given is not None:
            return [*written, save_picture(self._beside(drawn, *self.given), self.folder / "grid.png")]
        classes = len(set(labels.tolist() if labels is not None else self.texts))
        columns = n // classes if classes and n <= 400 and n % classes == 0 else None
        numbers = range(0, n, 1 if columns else max(1, n // 100))
        pictures = as_pictures(drawn.some(list(numbers if columns else numbers[:100])))
        if pictures is not None:
            sheet = grid(pictures, self.limits, columns=columns if columns and columns > 1 else None)
            written.append(save_picture(sheet, self.folder / "grid.png"))
        return written

    def _beside(self, drawn: Drawn, images: NDArray[Any], which: NDArray[Any]) -> Picture:
        """A row for each of at most 12 given images: the image, then at most 8 samples drawn from it."""
        import numpy as np

        from ddpm.data.export import grid

        each = min(8, int(np.bincount(which).min()))
        rows = [np.flatnonzero(which == k)[:each] for k in range(min(12, len(images)))]
        samples = drawn.some(np.concatenate(rows).tolist())
        sheet = np.concatenate([images[: len(rows), None], samples.reshape(len(rows), each, *samples.shape[1:])], axis=1)
        return grid(sheet.reshape(-1, *samples.shape[1:]), self.limits, columns=each + 1)

    def _prompts(self, kind: str) -> list[Path]:
        """The prompt of each sample: beside pictures as a labels file, so that `--data` reads them with their captions."""
        if not self.texts:
            return []
        inner = ["" if self.folders is None else f"{name}/" for name in self.folders or self.texts]
        rows = [{"file_name": f"{place}{i:06d}.png", "text": text} for i, (place, text) in enumerate(zip(inner, self.texts, strict=True))]
        if kind != "png":
            rows = [{"sample": i, "text": text} for i, text in enumerate(self.texts)]
        path = self.folder / ("metadata.jsonl" if kind == "png" else "prompts.jsonl")
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return [path]
