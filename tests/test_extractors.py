"""What turns samples into features: the published network's shape, its protocol, one trained here, and what each refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddpm.data import from_arrays
from ddpm.denoiser.card import Card
from ddpm.errors import ConfigError
from ddpm.evaluation.extractors.extractor import Raw, as_levels
from ddpm.evaluation.extractors.inception import Inception, InceptionV3, resized
from ddpm.evaluation.extractors.learned import Encoder, Learned, blocks_of, folded
from ddpm.evaluation.run import extractor_of
from ddpm.evaluation.settings import EvaluateConfig
from small_runs import pictures, table


def card(**changes: object) -> Card:
    """Of 8-bit colour pictures."""
    usual = dict(name="x", kind="image", shape=(3, 8, 8), dtype="uint8", low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Card(**{**usual, "sigma_data": 1.0, "bins": (0.0, 255.0), **changes})  # type: ignore[arg-type]


# --- Inception ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    torch.manual_seed(0)
    return InceptionV3()


def test_inception_is_the_published_network(network: InceptionV3) -> None:
    """Parameters of the network of 1008 classes, and every place where a shape is decided. Values: benchmarks/inception_agreement.py."""
    assert sum(p.numel() for p in network.parameters()) == 23_850_960 and not network.training
    features, logits = network(torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert torch.allclose(logits, features @ network.fc.weight.T, atol=1e-4)


def settled(network: InceptionV3) -> InceptionV3:
    """The weights of benchmarks/inception_agreement.py."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bn.bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif name.endswith("conv.weight"):
            value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
    return network


def test_inception_says_what_torch_fidelity_says() -> None:
    """Features by torch-fidelity 0.4.0 of these weights and this picture: resize, shift and scale, padding, pooling, the norms' epsilon."""
    x = torch.randint(0, 256, (1, 3, 40, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.inference_mode():
        features = settled(InceptionV3())(x)[0][0]
    assert features.norm().item() == pytest.approx(95.148468, rel=2e-5) and features.mean().item() == pytest.approx(1.2654583, rel=2e-5)
    some = [1.1468042, 1.1692362, 0.0, 0.0367025, 0.0, 1.1542137, 0.5945666, 2.2743826]
    assert features[::256].tolist() == pytest.approx(some, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (299, 20), (300, 400)])
def test_the_resize_reads_where_tensorflow_1_does(size: tuple[int, int]) -> None:
    """Output i at i H / 299, the last entry repeated: by an independent loop."""
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    got = resized(x)[0, 0]
    rng = np.random.default_rng(0)
    for i, j in rng.integers(0, 299, (50, 2)):
        y, z = i * size[0] / 299, j * size[1] / 299
        corners = [min(int(v) + d, n - 1) for v, n in ((y, size[0]), (z, size[1])) for d in (0, 1)]
        a, b = y - int(y), z - int(z)
        rows = [(1 - b) * x[0, 0, r, corners[2]] + b * x[0, 0, r, corners[3]] for r in corners[:2]]
        assert float(got[i, j]) == pytest.approx(float((1 - a) * rows[0] + a * rows[1]), abs=1e-12)
    assert not torch.allclose(got, F.interpolate(x, (299, 299), mode="bilinear")[0, 0]) or size == (299, 299)


def test_weights_are_read_and_strangers_refused(network: InceptionV3, tmp_path: Path) -> None:
    """With where to get them; batch counters may be missing, as they are in some files."""
    kept = {name: value for name, value in network.state_dict().items() if not name.endswith("tracked")}
    torch.save(kept, tmp_path / "good.pth")
    found = Inception(tmp_path / "good.pth", card())
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(found.embed(x), network(x)[0])
    same, other = (Inception(tmp_path / "good.pth", card(bins=bins)).identity for bins in ((0.0, 255.0), (0.0, 16.0)))
    assert found.identity == same != other
    torch.save({**kept, "fc.weight": kept["fc.weight"][:10]}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    for name, words in {"other": "lacks 1 of its", "text": "cannot be read as weights", "none": "no weights at"}.items():
        with pytest.raises(ConfigError, match=f"{words}.*pytorch-fid.*own") as raised:
            Inception(tmp_path / f"{name}.pth", card())
        assert name in str(raised.value)


def test_levels_are_rounded_to_8_bits() -> None:
    """As they would be saved: other ranges are spread, grey is repeated, continuous data go from lowest to highest."""
    grey = torch.tensor([[[[0, 8], [16, 4]]]], dtype=torch.uint8)
    assert as_levels(grey, card(bins=(0.0, 16.0)))[0, 2].tolist() == [[0, 128], [255, 64]]
    floats = torch.tensor([[[[-1.0, 1.0], [0.0, 7.0]]]])
    assert as_levels(floats, card(bins=None, low=(-1.0,), high=(1.0,)))[0, 0].tolist() == [[0, 255], [128, 255]]
    whole = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(as_levels(whole, card()), whole)
    with pytest.raises(ConfigError, match=r"these samples are \(2, 4, 4\)"):
        as_levels(torch.zeros(1, 2, 4, 4), card())


# --- raw ---------------------------------------------------------------------------------------------------------------------------------


def test_raw_features_are_the_entries_or_their_means() -> None:
    """Pooled only where there are too many."""
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    plain, pooled = Raw(card()), Raw(card(), most=50)
    assert plain.dim == 192 and torch.equal(plain.features(x), x.flatten(1).float())
    assert pooled.dim == 48 and torch.equal(pooled.features(x), F.avg_pool2d(x.float(), 2).flatten(1))
    assert pooled.identity != plain.identity
    odd, flat = Raw(card(shape=(3, 9, 9)), most=50), torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 9, 9)
    assert odd.dim == 27 and torch.equal(odd.features(flat), torch.arange(3.0).repeat_interleave(9).expand(2, 27))
    for shape in ((1, 4101), (3, 5, 40, 40)):
        assert Raw(card(shape=shape), most=4096).features(torch.ones(2, *shape)).shape == (2, Raw(card(shape=shape), most=4096).dim)


# --- trained here ------------------------------------------------------------------------------------------------------------------------


def test_an_encoder_is_trained_once_for_each_data_set(tmp_path: Path) -> None:
    """Read back with the same identity; other data, other file; a classifier where there are classes."""
    data = table(80, classes=2)
    first, again = (Learned.of(data, 5, cache=tmp_path) for _ in range(2))
    assert first.identity == again.identity and len(list((tmp_path / "extractors").glob("*.safetensors"))) == 1
    x = torch.from_numpy(data.samples[:9])
    assert torch.equal(first.features(x), again.features(x)) and first.features(x).shape == (9, 64)
    logits = first.logits(first.features(x))
    assert logits is not None and logits.shape == (9, 2)
    other = Learned.of(pictures(1, 8, 8), 2, cache=tmp_path)
    assert other.identity != first.identity and other.logits(torch.zeros(1, 64)) is None


def test_another_split_of_equal_size_has_another_encoder(tmp_path: Path) -> None:
    """One that has seen none of the rows held out."""
    data, told = table(80, classes=2), []
    rows = np.sort(np.concatenate([data.train_rows[8:], data.held_rows]))
    other = replace(data, train_rows=rows, held_rows=data.train_rows[:8])
    assert len(rows) == len(data.train_rows)
    found = [Learned.of(one, 2, cache=tmp_path, say=told.append).identity for one in (data, other, data)]
    assert found[0] == found[2] != found[1] and len(told) == 2


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_encoder_is_trained_again(damage: bytes | None, tmp_path: Path) -> None:
    """Cut, foreign, or of other tensors: to the same weights, saying so."""
    data, told = table(40, classes=2), []
    first = Learned.of(data, 2, cache=tmp_path)
    Learned.of(pictures(1, 8, 8), 2, cache=tmp_path / "other")
    (kept,), (other,) = ((at / "extractors").glob("*.safetensors") for at in (tmp_path, tmp_path / "other"))
    kept.write_bytes(other.read_bytes() if damage is None else kept.read_bytes()[:-7] + damage)
    again = Learned.of(data, 2, cache=tmp_path, say=told.append)
    assert again.identity == first.identity and f"{kept} is damaged; it is made again" in told
    assert Learned.of(data, 2, cache=tmp_path, say=told.append).identity == first.identity and len(told) == 2


@pytest.mark.parametrize(
    ("axes", "blocks"),
    [
        ((), ()),
        ((32, 32), (1, 1)),
        ((28, 32, 32), (1, 1, 1)),
        ((1024,), (1,)),
        ((1025,), (2,)),
        ((33, 33), (2, 2)),
        ((16, 300), (1, 16)),
        ((256, 256), (8, 8)),
        ((4, 64, 64), (1, 4, 4)),
    ],
)
def test_of_large_samples_blocks_become_channels(axes: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """So that the body sees no more places than 32x32 has, give or take the padding; nothing of smaller ones; and every entry counts."""
    assert blocks_of(axes) == blocks
    x = torch.rand(1, 2, *axes, requires_grad=True)
    encoder, seen = Encoder((2, *axes), 0), []
    encoder.body.stem.register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape[2:]))
    encoder(x).square().sum().backward()
    assert all(size <= 32 for size in seen[0]) or len(axes) == 1
    assert seen[0] == axes if set(blocks) <= {1} else seen[0].numel() <= 1100
    assert x.grad is not None and bool((x.grad != 0).all())


def test_folding_is_pixel_unshuffle_with_its_edges_repeated() -> None:
    """Of a picture; the blocks that stick out hold its last row and column."""
    x = torch.rand(2, 3, 45, 64)
    whole = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1)], dim=2)
    assert torch.equal(folded(x, (4, 4)), F.pixel_unshuffle(whole, 4)) and folded(x, (1, 1)).shape == x.shape


def test_a_device_that_is_named_is_the_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the samples drawn; its features are on the host."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    asked: list[torch.device | None] = []
    of = Learned.of
    monkeypatch.setattr(Learned, "of", lambda data, *, device, say: asked.append(device) or of(data, 2, device=device))
    data, device = pictures(1, 8, 8), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = extractor_of(EvaluateConfig(), data, device)
    features = found.features(torch.from_numpy(data.samples[:9]))
    assert isinstance(found, Learned) and asked == [device] and features.device.type == "cpu"
    assert found.encoder.body.head.weight.device.type == device.type


@pytest.mark.parametrize("shape", [(4, 12), (2, 8, 8), (1, 4, 8, 8), (5,), (1, 40, 36)])
def test_every_kind_of_data_has_an_extractor(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Signals, fields, volumes and tables, and what is larger than the encoder's body."""
    samples = np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32)
    found = Learned.of(from_arrays(samples, name="any"), 2, cache=tmp_path)
    assert found.features(torch.from_numpy(samples)).shape == (60, 64)


def test_the_encoder_learns_what_tells_samples_apart(tmp_path: Path) -> None:
    """Two classes of pictures with a bright half: its score is sure, and features of one class are nearer to each other."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    samples = rng.integers(0, 100, (200, 1, 8, 8))
    samples[labels == 0, :, :4] += 120
    samples[labels == 1, :, 4:] += 120
    data = from_arrays(samples.astype(np.uint8), {"class": labels}, name="halves")
    found = Learned.of(data, 60, cache=tmp_path)
    x = torch.from_numpy(np.asarray(data.samples[:]))
    logits = found.logits(found.features(x))
    assert logits is not None and float((logits.argmax(1).numpy() == labels).mean()) > 0.98
    features = found.features(x)
    zero, one = features[labels == 0], features[labels == 1]
    assert torch.cdist(zero, zero).mean() < 0.8 * torch.cdist(zero, one).mean()
