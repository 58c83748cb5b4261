"""Latents against pixels, how much memory a large picture takes, and what tiles make of that.

    python benchmarks/latents.py --part memory      a 512x512 picture through a latent model: peak memory; a minute
    python benchmarks/latents.py --part tiles       a 1024x1024 picture decoded whole and in tiles: memory, time, difference; minutes
    python benchmarks/latents.py --part scenes      128x128 scenes of real digits: a latent and a pixel model, --minutes of training each

scenes: grey pictures of 6 to 10 handwritten digits (scikit-learn's, enlarged three times) that do not overlap, on a slope of grey; made
from seed 0. Both models get the same CPU minutes, the latent one's autoencoder and the encoding of its data included; the pixel model's
schedule is shifted for its size. Scored are --n samples of each by the Frechet distance on features of an encoder trained on the scenes,
all halved in size, beside that of unseen scenes, and the pictures a CPU second they draw at. At 128x128 that encoder would take hours; half
the size and --extractor-steps take minutes, and what is finer than two pixels is not scored. What was spent is kept in the folder.

tiles: memory with the autoencoder of --part memory, untrained; the difference with one that is trained on 64x64 pieces of scenes for 300
steps, on a 1024x1024 picture of 64 scenes.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

SIDE, DIGIT = 128, 24


def scenes(count: int, seed: int) -> NDArray[np.uint8]:
    """(count, 1, 128, 128): a function of the seed."""
    from ddpm.data.digits import handwritten

    digits = torch.from_numpy(handwritten()[0].reshape(-1, 1, 8, 8)).float() / 16.0
    digits = F.interpolate(digits, size=DIGIT, mode="bilinear")[:, 0].numpy()
    rng, place = np.random.default_rng(seed), np.linspace(-1, 1, SIDE, dtype=np.float32)
    out = np.empty((count, 1, SIDE, SIDE), np.uint8)
    cells = [(row, column) for row in range(4) for column in range(4)]  # of 32 pixels: a digit lies anywhere within one
    for scene in out:
        slope = rng.uniform(-0.1, 0.1, 2)
        canvas = 0.25 + slope[0] * place[:, None] + slope[1] * place[None]
        for row, column in rng.permutation(cells)[: rng.integers(6, 11)]:
            y, x = (32 * np.array([row, column]) + rng.integers(0, 32 - DIGIT + 1, 2)).tolist()
            ink = digits[rng.integers(len(digits))]
            canvas[y : y + DIGIT, x : x + DIGIT] += ink * (1.0 - canvas[y : y + DIGIT, x : x + DIGIT])
        scene[0] = np.round(255 * canvas.clip(0, 1))
    return out


def memory() -> dict[str, Any]:
    """Peak memory of a process that draws one 3x512x512 picture in 4 calls through latents of 4x64x64; untrained weights take as much."""
    return apart("draw_large()")


def apart(call: str) -> dict[str, Any]:
    """What a function of this file prints in a process of its own: `ru_maxrss` never falls."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import latents; latents.{call}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw_large() -> None:
    """Print the peak memory of this process, and the time, of drawing a picture."""
    import ddpm
    from ddpm.denoiser import Codec, Index, NetworkDenoiser, V
    from ddpm.networks import AutoencoderConfig, UNetConfig
    from ddpm.process import Cosine, Process

    autoencoder = AutoencoderConfig(channels=64, mults=(1, 2, 4, 4), blocks=2).build((3, 512, 512))
    network = UNetConfig(channels=128, mults=(1, 2, 2, 2), attention=(2,)).build(autoencoder.latent_shape)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (autoencoder, network)]
    pixels = Codec(shift=(127.5,) * 3, scale=(127.5,) * 3, dtype="uint8", bins=(0.0, 255.0))
    latent = Codec(shift=(0.0,) * 4, scale=(1.0,) * 4)
    model = NetworkDenoiser(network, Process(Cosine()), V(), Index(), latent, autoencoder.latent_shape, through=(autoencoder, pixels))
    began = time.perf_counter()
    drawn = ddpm.sample(model, 1, steps=4)
    assert drawn.shape == (1, 3, 512, 512) and drawn.dtype == torch.uint8
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {"peak_gib": round(peak, 2), "seconds": round(time.perf_counter() - began, 1), "autoencoder": sizes[0], "network": sizes[1]}
        )
    )


def tiles(folder: Path) -> dict[str, Any]:
    """Memory and time of decoding one 3x1024x1024 picture, whole and in tiles, and how far the tiles are from the whole."""
    result: dict[str, Any] = {}
    for tile in (None, 64, 32):
        result[f"tile {tile}"] = apart(f"decode_large({tile})")
        print(tile, result[f"tile {tile}"], flush=True)
    return {**result, "difference": differences(folder)}


def decode_large(tile: int | None) -> None:
    """Print the peak memory of this process before and after decoding a 3x1024x1024 picture, and the time."""
    from ddpm.denoiser import Codec, LatentCodec
    from ddpm.networks import AutoencoderConfig

    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(channels=64, mults=(1, 2, 4, 4), blocks=2).build((3, 1024, 1024))
    pixels = Codec(shift=(127.5,) * 3, scale=(127.5,) * 3, dtype="uint8", bins=(0.0, 255.0))
    codec = replace(LatentCodec.through(autoencoder, pixels, Codec(shift=(0.0,) * 4, scale=(1.0,) * 4)), tile=tile)
    z = torch.randn(1, *autoencoder.latent_shape)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter()
    assert codec.decode(z).shape == (1, 3, 1024, 1024)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"before_gib": round(before, 2), "peak_gib": round(peak, 2), "seconds": round(time.perf_counter() - began, 1)}))


def differences(folder: Path) -> dict[str, Any]:
    """Of a trained autoencoder: tiles against the whole, in 8-bit levels, and the PSNR of both against the original."""
    from ddpm.data import from_arrays
    from ddpm.denoiser import LatentCodec
    from ddpm.metrics import psnr
    from ddpm.networks import AutoencoderConfig
    from ddpm.training.autoencoder import train_autoencoder
    from ddpm.training.config import AutoencodeConfig

    seen, side = scenes(500, 0), 8 * SIDE
    pieces = from_arrays(seen.reshape(500, 2, 64, 2, 64).swapaxes(2, 3).reshape(2000, 1, 64, 64), name="pieces of scenes")
    config = AutoencodeConfig(
        out=str(folder / "pieces"), steps=300, batch=16, network=AutoencoderConfig(channels=16, mults=(1, 2, 4), latent=4)
    )
    trained = train_autoencoder(config, data=pieces, quiet=True)
    unit = replace(trained.codec, shift=(0.0,) * 4, scale=(1.0,) * 4, dtype="float32", bins=None)
    codec = LatentCodec.through(trained.autoencoder, replace(trained.codec, dtype="float32", bins=None), unit)
    picture = torch.from_numpy(scenes(64, 3).reshape(8, 8, SIDE, SIDE).swapaxes(1, 2).reshape(1, 1, side, side))
    with torch.no_grad():
        z = trained.autoencoder.posterior(trained.codec.encode(picture)).mean
    whole = codec.decode(z)
    result: dict[str, Any] = {"psnr_whole": psnr(whole, picture.float(), 255.0).item()}
    for tile in (128, 64, 32):
        found = replace(codec, tile=tile).decode(z)
        error = (found - whole).abs()
        result[f"tile {tile}"] = {
            "rms": error.square().mean().sqrt().item(), "largest": error.max().item(), "psnr": psnr(found, picture.float(), 255.0).item()
        }  # fmt: skip
    return result


def main() -> int:
    """One part or the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("memory", "tiles", "scenes"), required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="scenes: CPU minutes of training for each model")
    parser.add_argument("--n", type=int, default=500, help="scenes: samples scored")
    parser.add_argument("--scenes", type=int, default=4000, help="scenes: trained on; scores are taken against half as many others")
    parser.add_argument("--autoencoder-steps", type=int, default=400, help="scenes: of the latent model's autoencoder")
    parser.add_argument("--threads", type=int, default=None, help="scenes: of the training runs; none: what suits each")
    parser.add_argument("--extractor-steps", type=int, default=200, help="scenes: of the encoder that scores are measured on")
    parser.add_argument("--folder", type=Path, default=Path("runs/latents"), help="where runs are kept; the same call goes on")
    args = parser.parse_args()
    from latents_scenes import compared

    parts = {"memory": memory, "tiles": lambda: tiles(args.folder), "scenes": lambda: compared(args)}
    print(json.dumps(parts[args.part]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
