"""Group norm with swish in one pass: what torch's operators say, and given up where it does not fit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.networks import UNetConfig, fused
from ddpm.networks.blocks import GroupNorm, reference
from ddpm.training.machine import executed

HERE = fused.library() is not None
needs_compiler = pytest.mark.skipif(not HERE, reason="no C++ compiler that makes norm.cpp on this machine")
EPS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def case(channels: int, groups: int, size: int, dtype: torch.dtype, mean: float = 0.0) -> tuple[GroupNorm, list[Tensor], Tensor]:
    """A norm with weights, (x, shift), and the gradient that comes back."""
    generator = torch.Generator().manual_seed(channels + size)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    norm = GroupNorm(groups, channels, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(draw(channels))
        norm.bias.copy_(draw(channels))
    shape = (3, channels, size, size + 1)
    x, dy = ((draw(*shape) + offset).to(dtype).contiguous(memory_format=torch.channels_last) for offset in (mean, 0.0))
    return norm, [x, draw(3, channels).to(dtype)], dy


def exact(norm: nn.GroupNorm, given: list[Tensor], dy: Tensor, swish: bool) -> list[Tensor]:
    """Value and gradients by torch's operators in float64."""
    x, *shifts = (tensor.detach().double().requires_grad_() for tensor in given)
    weight, bias = (tensor.detach().double().requires_grad_() for tensor in (norm.weight, norm.bias))
    shifted = x + shifts[0][:, :, None, None] if shifts else x
    y = F.group_norm(shifted, norm.num_groups, weight, bias, norm.eps)
    y = F.silu(y) if swish else y
    return [y.detach(), *torch.autograd.grad(y, [x, *shifts, weight, bias], dy.double())]


def ours(norm: GroupNorm, given: list[Tensor], dy: Tensor, swish: bool) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    assert fused.fits(norm, leaves[0], leaves[1] if len(leaves) > 1 else None)
    y = norm(*leaves, swish=swish)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, norm.weight, norm.bias], dy)]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("swish", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("channels", "groups", "size"), [(32, 8, 8), (20, 4, 3), (36, 3, 5), (7, 1, 2), (128, 32, 20), (96, 1, 4)])
def test_values_and_gradients(channels: int, groups: int, size: int, shifted: bool, swish: bool, dtype: torch.dtype) -> None:
    """Sizes with and without a rest of lanes, of positions, and of channels beyond a whole unit."""
    norm, given, dy = case(channels, groups, size, dtype)
    given = given[: 1 + shifted]
    found, wanted = ours(norm, given, dy, swish), exact(norm, given, dy, swish)
    assert found[0].is_contiguous(memory_format=torch.channels_last) and all(one.dtype == dtype for one in found[: 2 + shifted])
    for one, two in zip(found, wanted, strict=True):
        assert (one.double() - two).abs().max() <= EPS[dtype] * two.abs().max()


@needs_compiler
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """Sums of squares would lose all of them: 1000^2 against a variance of 1."""
    norm, given, dy = case(64, 16, 20, torch.float32, mean=1000.0)
    for one, two in zip(ours(norm, given[:1], dy, True), exact(norm, given[:1], dy, True), strict=True):
        assert (one.double() - two).abs().max() <= 1e-3 * two.abs().max()  # x itself has no more


@needs_compiler
@pytest.mark.parametrize("place", [0, 1024, 2048, 3072, -1])
def test_one_value_far_from_the_others_costs_no_digits(place: int) -> None:
    """Such as a corner beside padding: sums are about a value in the middle, not about that one."""
    norm, _, _ = case(32, 8, 4, torch.float32)
    norm.requires_grad_(False)
    x = 1000.0 + torch.randn(1, 4096, 32, generator=torch.Generator().manual_seed(0))
    x[:, place] = 0.0
    x = x.reshape(1, 64, 64, 32).permute(0, 3, 1, 2)
    wanted = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    assert fused.fits(norm, x, None) and (norm(x).double() - wanted).abs().max() < 3e-5 * wanted.abs().max()


@needs_compiler
def test_swish_of_what_overflows() -> None:
    norm = GroupNorm(1, 16, eps=1e-6).requires_grad_(False)
    norm.bias.fill_(torch.inf)
    assert bool((norm(torch.zeros(1, 16, 2, 2).contiguous(memory_format=torch.channels_last), swish=True) == torch.inf).all())


@needs_compiler
def test_extremes_are_exact_and_what_is_no_number_stays_in_its_sample() -> None:
    norm, (x, _), _ = case(32, 8, 4, torch.float32)
    nn.init.constant_(norm.requires_grad_(False).weight, 1e4)
    y = norm(x, swish=True)
    assert bool(y.isfinite().all()) and float(y.max()) > 1e3 and float(y.min()) > -0.2785  # the least value of swish
    for bad in (torch.nan, torch.inf):
        x[1, 3, 2, 2] = bad
        y = norm(x.bfloat16().contiguous(memory_format=torch.channels_last), swish=True)
        assert bool(y[1, :4].isnan().all()) and bool(y[[0, 2]].isfinite().all()) and bool(y[1, 4:].isfinite().all())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_any_number_of_threads_and_in_any_batch(dtype: torch.dtype) -> None:
    norm, given, dy = case(128, 32, 12, dtype)
    torch.set_num_threads(1)
    one = ours(norm, given, dy, True)
    torch.set_num_threads(3)
    three = ours(norm, given, dy, True)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    alone = ours(norm, [tensor[1:2] for tensor in given], dy[1:2], True)
    assert all(torch.equal(a, b[1:2]) for a, b in zip(alone[:3], one[:3], strict=True))


@needs_compiler
def test_other_tensors_go_the_ordinary_way() -> None:
    norm, (x, shift), _ = case(32, 8, 4, torch.float32)
    norm.requires_grad_(False)
    assert fused.fits(norm, x, shift)
    for other in (x.contiguous(), x.double(), x[0], x.to("meta"), nn.Parameter(x), x[:, :, :, 1:], x[:, :, :0], x[:0], x[:, :, :1, :1]):
        assert not fused.fits(norm, other, None)
    for other in (shift[:1], shift[:, :16], shift.to("meta"), nn.Parameter(shift), shift[:, :, None]):
        assert not fused.fits(norm, x, other)
    assert not fused.fits(norm, torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last), None)
    with pytest.raises(RuntimeError, match="channels"):
        norm(torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last))
    for name, weight in (
        ("weight", torch.ones(64)[::2]),
        ("bias", torch.ones(64)[::2]),
        ("weight", torch.ones(32, device="meta")),
        ("bias", None),
    ):
        other = GroupNorm(8, 32)
        setattr(other, name, None if weight is None else nn.Parameter(weight))
        assert not fused.fits(other, x, None)
    assert not fused.fits(norm.double(), x, None)
    norm.float()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(norm(dual, swish=True)).tangent
    through = torch.func.jvp(lambda x: norm(x, swish=True), (x,), (torch.ones_like(x),))[1]
    assert tangent is not None and float(tangent.abs().max()) < 1e-4  # a constant added to all of x changes nothing
    torch.testing.assert_close(through, tangent)
    plain, fast = x.clone(), norm(x, shift, swish=True)
    with reference(norm):
        torch.testing.assert_close(norm(plain, shift, swish=True), fast, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain, x)


@needs_compiler
def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    """Of a picture of zeros nothing but the bias is left: ties go to even, NaN stays NaN, nothing is divided by zero."""
    norm = GroupNorm(1, 64, eps=1e-6).requires_grad_(False)
    some = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x7F800000, -0x7FFF8000, 0x7FFFFFFF]
    bits = torch.tensor(some * 8, dtype=torch.int32)
    norm.bias.copy_(bits.view(torch.float32))
    y = norm(torch.zeros(2, 64, 3, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last))
    assert fused.fits(norm, y, None)
    torch.testing.assert_close(y, norm.bias.bfloat16().view(1, 64, 1, 1).expand_as(y), rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_gradients_come_in_any_layout() -> None:
    norm, given, dy = case(32, 8, 4, torch.float32)
    for one, two in zip(ours(norm, given, dy.contiguous(), True), ours(norm, given, dy, True), strict=True):
        assert torch.equal(one, two)


@needs_compiler
def test_second_derivatives_are_refused_and_not_wrong() -> None:
    norm, (x, _), _ = case(32, 8, 4, torch.float32)
    x.requires_grad_()
    (first,) = torch.autograd.grad(norm(x, swish=True).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


@needs_compiler
def test_swish_is_exact_to_the_last_digits() -> None:
    """Of a picture of zeros the bias is left, and swish takes it: to 4 units in the last place of float32 over its whole range."""
    norm = GroupNorm(1, 4096, eps=1e-6).requires_grad_(False)
    norm.bias.copy_(torch.linspace(-80.0, 80.0, 4096))
    y = norm(torch.zeros(1, 4096, 1, 2).contiguous(memory_format=torch.channels_last), swish=True)[0, :, 0, 0].double()
    assert ((y / F.silu(norm.bias.double())) - 1).abs().max() < 4 * 2.0**-24 * 1.01


@needs_compiler
def test_a_network_under_compilation_goes_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, (x, _), _ = case(32, 8, 4, torch.float32)
    assert fused.fits(norm, x, None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.fits(norm, x, None)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder for caches, and nothing loaded."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    fused.library.cache_clear()
    yield tmp_path / "cache"
    monkeypatch.undo()
    fused.library.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.so"))


@needs_compiler
def test_a_library_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A link that ends half-way leaves nothing that the next process would load; one that was damaged is made again."""
    original = subprocess.run

    def run(words: list[str], **rest: Any) -> Any:
        if "-shared" in words:
            Path(words[-1]).write_bytes(b"half")
            raise subprocess.CalledProcessError(1, words)
        return original(words, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        assert fused.library() is None and not libraries(cache)
    fused.library.cache_clear()
    assert fused.library() is not None
    (made,) = libraries(cache)
    damaged = cache / "other" / "compiled" / made.name  # elsewhere: what is loaded already would not be read again
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    monkeypatch.setenv("DDPM_CACHE", str(cache / "other"))
    fused.library.cache_clear()
    assert fused.library() is not None and damaged.read_bytes() == made.read_bytes()


@needs_compiler
@pytest.mark.parametrize("what", ["source", "flags", "compiler", "processor"])
def test_another_library_for_another(what: str, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    assert fused.library() is not None
    if what == "source":
        (tmp_path / "norm.cpp").write_text(fused.SOURCE.read_text() + "\n// changed\n")
        monkeypatch.setattr(fused, "SOURCE", tmp_path / "norm.cpp")
    elif what == "flags":
        monkeypatch.setattr(fused, "FLAGS", (*fused.FLAGS, "-DOTHER"))
    elif what == "compiler":
        monkeypatch.setenv("CXX", "env g++")  # several words
    else:
        monkeypatch.setattr(fused, "_processor", lambda: b"another")
    fused.library.cache_clear()
    assert fused.library() is not None and len(libraries(cache)) == 2


@needs_compiler
def test_code_that_others_could_have_put_there_is_not_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the process compiles its own, elsewhere."""
    (cache / "compiled").mkdir(parents=True)
    loaded: list[Path] = []
    original = fused._load
    monkeypatch.setattr(fused, "_load", lambda path: loaded.append(path) or original(path))
    for folder, mode in ((cache / "compiled", 0o777), (cache, 0o777)):
        folder.chmod(mode)
        fused.library.cache_clear()
        assert fused.library() is not None and not libraries(cache) and loaded and cache not in loaded[-1].parents
        folder.chmod(0o755)
    fused.library.cache_clear()
    assert fused.library() is not None and cache in loaded[-1].parents
    libraries(cache)[0].chmod(0o777)
    fused.library.cache_clear()
    assert fused.library() is not None and cache not in loaded[-1].parents
    monkeypatch.setattr("os.geteuid", lambda: 12345)  # as for somebody else's files; the administrator's are taken
    libraries(cache)[0].chmod(0o755)
    if (cache / "compiled").stat().st_uid == 0:
        fused.library.cache_clear()
        assert fused.library() is not None and cache in loaded[-1].parents


def test_without_a_home_everything_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(fused, "folder", homeless)
    fused.library.cache_clear()
    try:
        assert (fused.library() is not None) == HERE  # it is compiled for this process alone
    finally:
        monkeypatch.undo()
        fused.library.cache_clear()


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_without_a_compiler_everything_works(broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler" if broken == "missing" else "false")
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    fused.library.cache_clear()
    try:
        assert fused.library() is None
        network = UNetConfig(channels=16, mults=(1, 2), blocks=1).build((1, 8, 8))
        with executed(network, "none", torch.device("cpu")):
            assert network.layout == torch.contiguous_format
        norm, given, dy = case(32, 8, 4, torch.float32)
        x = given[0].clone().requires_grad_()
        found = torch.autograd.grad(norm(x, swish=True), x, dy)[0]
    finally:
        monkeypatch.undo()
        fused.library.cache_clear()
    assert (found.double() - exact(norm, given[:1], dy, True)[1]).abs().max() < 1e-4


@needs_compiler
@pytest.mark.parametrize("colours", [1, 3])
def test_training_goes_channels_last_and_says_the_same(colours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = UNetConfig(channels=16, mults=(1, 2), blocks=1, attention=(1,), dropout=0.0, zero_init=False)
    network = config.build((colours, 8, 8))
    x, t = torch.randn(4, colours, 8, 8), torch.rand(4)
    norms, original = sum(isinstance(part, GroupNorm) for part in network.modules()), fused.norm_swish
    calls: list[int] = []
    monkeypatch.setattr(fused, "norm_swish", lambda *args: calls.append(1) or original(*args))

    def gradients() -> list[Tensor]:
        y = network(x, t)
        return [y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    with reference(network):
        plain = gradients()
    assert not calls
    with executed(network, "none", torch.device("cpu")):
        assert network.layout == torch.channels_last
        fast = gradients()
    assert len(calls) == norms  # every one, of grey pictures too
    assert network.layout == torch.contiguous_format
    for one, two in zip(fast, plain, strict=True):
        assert (one - two).abs().max() <= 1e-4 * two.abs().max() + 1e-5
