"""Ho's CIFAR-10 network, 35,746,307 parameters at (3, 32, 32): training steps and forward passes of this package and of its peers.

The same weights in this package's U-Net and in diffusers' UNet2DModel, which runs as its unconditional training script sets it up (float32,
attention heads 8 channels wide) and at its best (bfloat16 autocast, one head); `plain.py` in bfloat16; and, of like size but other
architectures, the U-Nets of denoising-diffusion-pytorch and azula (no attention), in bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from ceiling import bare_products
from clock import Action, Part, Seconds, interleaved, lowered, ratio
from peers import library
from plain import Plain
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddpm.denoiser import Codec, Eps, Index, NetworkDenoiser
from ddpm.denoiser.serving import packed
from ddpm.interop.diffusers_unet import from_diffusers_state
from ddpm.networks import UNetConfig
from ddpm.objective import Denoising, Draws
from ddpm.process import Linear, Process
from ddpm.random import generator
from ddpm.training.averaging.ema import PowerEMA
from ddpm.training.machine import executed

SHAPE = (3, 32, 32)
CLIP = 1.0
OURS = "ddpm (bf16)"
BEST = "diffusers, best (bf16, one head)"
CAST = "diffusers, cast by hand (bf16, one head)"  # its weights in bfloat16 and channels last
CEILINGS = ("ceiling", "ceiling, channels last", "ceiling, packed weights")
Network = Callable[[Tensor, Tensor], Tensor]


class Peer(NamedTuple):
    """A network of another library: its module, how it is called on (x, t), its precision, and how its trainer is set."""

    module: nn.Module
    call: Network
    precision: str
    tuned: bool = True  # fused optimizer, batched weight average


def ours_and_peers() -> tuple[NetworkDenoiser, dict[str, Peer]]:
    """This package's network inside a denoiser of Ho's process, as a run has it, and the others."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "dropout": 0.0,
    }  # fmt: skip
    model = library("diffusers").UNet2DModel
    script, best = model(**common, attention_head_dim=8), model(**common, attention_head_dim=None)
    script.load_state_dict(best.state_dict())
    config = UNetConfig(dropout=0.0)
    network = config.build(SHAPE)
    network.load_state_dict(from_diffusers_state(best.state_dict(), config))
    codec = Codec(shift=(127.5,) * 3, scale=(127.5,) * 3, dtype="uint8", bins=(0.0, 255.0))
    plain = Plain()
    peers = {
        "diffusers, its script (fp32)": Peer(script, lambda x, t: script(x, t).sample, "fp32", tuned=False),
        BEST: Peer(best, lambda x, t: best(x, t).sample, "bf16"),
        "plain (bf16)": Peer(plain, plain, "bf16"),
    }
    return NetworkDenoiser(network, Process(Linear()), Eps(), Index(), codec, SHAPE), peers


def others() -> dict[str, Peer]:
    """U-Nets of like size that are built otherwise."""
    lucid = library("denoising_diffusion_pytorch").Unet(144, dim_mults=(1, 2, 2, 2), full_attn=(False, True, False, False))
    blocks = library("azula.nn.unet")
    azula = blocks.UNet(3, 3, hid_channels=(128, 256, 256, 256), hid_blocks=(3, 4, 4, 3), mod_features=512, norm="group")
    embed = nn.Linear(1, 512)

    def call(x: Tensor, t: Tensor) -> Tensor:
        return azula(x, embed(t[:, None] / 1000))

    return {
        "denoising-diffusion-pytorch (bf16)": Peer(lucid, lucid, "bf16"),
        "azula (bf16)": Peer(nn.ModuleList([azula, embed]), call, "bf16"),
    }


def sizes(call: Network, shape: tuple[int, ...] = SHAPE) -> float:
    """GFLOP of one forward pass of one picture."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(torch.zeros(1, *shape), torch.zeros(1))
    return counter.get_total_flops() / 1e9


def stepping(
    module: nn.Module, loss: Callable[[int], Tensor], optimizer: torch.optim.Optimizer, average: Callable[[int], object]
) -> Action:
    """A training step: the loss after so many steps, its gradient clipped, the optimizer, the weight average."""
    parameters, done = list(module.train().parameters()), 0

    def step() -> None:
        nonlocal done
        loss(done).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        average(done)

    return step


def fused(module: nn.Module, loss: Callable[[int], Tensor]) -> Action:
    """A step with this package's optimizer and weight average."""
    ema = PowerEMA(module, 0.05)
    return stepping(module, loss, torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True), lambda done: ema.update(module, done))


def our_step(denoiser: NetworkDenoiser, x0: Tensor, precision: str = "bf16") -> Action:
    """A training step of this package."""
    loss_of = Denoising().build()

    def loss(done: int) -> Tensor:
        stream = generator(0, "noise", 0, done)
        eps = torch.from_numpy(stream.standard_normal(x0.shape, dtype="float32"))
        with lowered(precision):
            return loss_of(denoiser, x0, None, Draws(torch.from_numpy(stream.random(len(x0))), eps, eps)).mean()

    return fused(denoiser, loss)


def their_step(peer: Peer, x0: Tensor) -> Action:
    """A training step as diffusers' unconditional script takes it; a tuned one has the fused optimizer and the batched average."""
    diffusers = library("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    parameters = list(peer.module.parameters())
    average = diffusers.training_utils.EMAModel(
        parameters, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=peer.tuned
    )
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=peer.tuned)

    def loss(done: int) -> Tensor:
        noise, times = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        noisy = scheduler.add_noise(x0, noise, times)
        with lowered(peer.precision):
            predicted = peer.call(noisy, times.float())
        return F.mse_loss(predicted.float(), noise)

    return stepping(peer.module, loss, optimizer, lambda done: average.step(parameters))


def forward(call: Network, x: Tensor, t: Tensor, precision: str) -> Action:
    """One pass without gradients. Within an outer autocast what was cast in one pass is there in the next, as in a loop of sampling.

    Not in inference mode, where autocast keeps nothing.
    """

    def run() -> None:
        with torch.no_grad(), lowered(precision):
            call(x, t)

    return run


def ceilings(network: Any, inputs: tuple[Tensor, Tensor], backward: bool) -> dict[str, Action]:
    """The network's products alone, in both layouts of pictures, and without gradients with weights made ready once."""
    found: dict[str, Action] = {}
    before = network.layout
    for name, layout in {"ceiling": torch.contiguous_format, "ceiling, channels last": torch.channels_last}.items():
        network.layout = layout
        found[name] = bare_products(network, inputs, "bf16", backward)
        if layout == torch.channels_last and not backward:
            found["ceiling, packed weights"] = bare_products(network, inputs, "bf16", backward, ready=True)
    network.layout = before
    return found


def training(batch: int, rounds: int, more: bool) -> Part:
    """Interleaved training steps: ours as a run has them."""
    denoiser, peers = ours_and_peers()
    peers |= others() if more else {}
    x0 = torch.rand(batch, *SHAPE) * 2 - 1
    alone = ceilings(denoiser.network, (torch.randn(batch, *SHAPE), torch.rand(batch)), True)
    with executed(denoiser.network, "none", torch.device("cpu")):
        actions = {OURS: our_step(denoiser, x0), **alone}
        seconds = interleaved({**actions, **{name: their_step(peer, x0) for name, peer in peers.items()}}, rounds)
    return Part(f"35.7 M U-Net, training, batch {batch}", seconds, batch, notes(denoiser, peers), summary("train", seconds))


def sampling(batch: int, rounds: int, more: bool) -> Part:
    """Interleaved forward passes, as sampling makes them: ours with its weights packed."""
    denoiser, peers = ours_and_peers()
    peers |= others() if more else {}
    network = denoiser.network.eval()
    x, t = torch.randn(batch, *SHAPE), torch.rand(batch) * 999
    alone = ceilings(network, (x, t), False)
    for peer in peers.values():
        peer.module.eval()
    cast = copy.deepcopy(peers[BEST].module).bfloat16().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    peers[CAST] = Peer(cast, lambda x, t: cast(x.bfloat16().contiguous(memory_format=torch.channels_last), t).sample, "fp32")
    with packed(network), torch.autocast("cpu", torch.bfloat16):
        actions = {OURS: forward(network, x, t, "bf16"), **alone}
        actions |= {name: forward(peer.call, x, t, peer.precision) for name, peer in peers.items()}
        seconds = interleaved(actions, rounds)
    ratios = summary("forward", seconds)
    ratios["forward_vs_cast"] = ratio(seconds, CAST, OURS)
    ratios["forward_vs_best"] = min(ratios["forward_vs_best"], ratios["forward_vs_cast"])
    return Part(f"35.7 M U-Net, forward, batch {batch}", seconds, batch, notes(denoiser, peers), ratios)


def notes(denoiser: NetworkDenoiser, peers: dict[str, Peer]) -> dict[str, str]:
    """Parameters and GFLOP a picture of each."""
    found = {OURS: (denoiser.network, denoiser.network.forward)} | {name: (peer.module, peer.call) for name, peer in peers.items()}
    return {
        name: f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters, {sizes(call):.1f} GFLOP"
        for name, (module, call) in found.items()
    }


def summary(what: str, seconds: Seconds) -> dict[str, float]:
    """How many times faster ours is, and its share of the ceiling."""
    return {
        f"{what}_vs_script": ratio(seconds, "diffusers, its script (fp32)", OURS),
        f"{what}_vs_best": ratio(seconds, BEST, OURS),
        f"{what}_vs_plain": ratio(seconds, "plain (bf16)", OURS),
        f"ceiling_fraction_{what}": min(ratio(seconds, name, OURS) for name in CEILINGS if name in seconds),
    }
