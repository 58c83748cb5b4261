"""What was measured: linear operators y = A x0 with adjoint and solve. Any other callable is a non-linear one, which only `DPS` takes.

x0 is (B, *D) in the space diffused in, for any D; y is (B, *M). Each operator knows its A A^T in a basis where it is diagonal, so every
solve is in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError

SMALLEST = 1e-6  # singular values below this share of the largest count as zero: float32 cannot tell them from it


class Operator(nn.Module, ABC):
    """A linear A with A A^T = U diag(squares) U^T. Members write `forward` (A x), `adjoint` (A^T y), `turn` (U^T y), `back` (U c) and
    `squares`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (B, *D) -> (B, *M)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (B, *M) -> (B, *D)."""

    @abstractmethod
    def turn(self, y: Tensor) -> Tensor:
        """U^T y, coordinates in which A A^T is diagonal."""

    @abstractmethod
    def back(self, c: Tensor) -> Tensor:
        """U c."""

    @abstractmethod
    def squares(self, like: Tensor) -> Tensor:
        """Squared singular values, to broadcast over c (`like`)."""

    def seen(self, y: Tensor) -> Tensor:
        """y with zeros where nothing was measured."""
        return y

    def count(self, y: Tensor) -> Tensor:
        """How many numbers y (B, *M) holds of each sample, () or (B,)."""
        return torch.tensor(y[0].numel(), device=y.device)

    def solve(self, y: Tensor, variance: float | Tensor = 1.0, noise: float = 0.0) -> Tensor:
        """(variance A A^T + noise^2 I)^-1 y, for noise = 0 the matrix's pseudo-inverse. variance > 0: a number, () or (B, 1, ..., 1)."""
        c = self.turn(y)
        if isinstance(variance, Tensor) and variance.ndim:
            variance = variance.reshape(-1, *[1] * (c.ndim - 1))
        squares = self.squares(c)
        total = variance * squares + noise**2
        if noise == 0.0:
            kept = squares > SMALLEST**2 * squares.max()
            return self.back(torch.where(kept, c / torch.where(kept, total, 1.0), 0.0))
        return self.back(c / total)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = A^T (A A^T)^+ y: the smallest x0 that explains y best."""
        return self.adjoint(self.solve(y))


class Mask(Operator):
    """Some entries are known: A = diag(known), y of x0's shape, of which the entries that are not known are ignored and may be NaN.

    known: bool, broadcasts over D or (B, *D). Inpainting, and sparse observations at grid points. Raises ConfigError for a mask that is not
    bool.
    """

    known: Tensor

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        if known.dtype != torch.bool:
            raise ConfigError(f"known: got dtype {known.dtype}, must be bool, true where the entry was measured")
        self.register_buffer("known", known)

    def forward(self, x: Tensor) -> Tensor:
        """x0 where known, else 0."""
        return self.seen(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """y where known, else 0."""
        return self.seen(y)

    def seen(self, y: Tensor) -> Tensor:
        """y where known, else 0."""
        return torch.where(self.known, y, 0.0)

    def count(self, y: Tensor) -> Tensor:
        """Of the entries of y, how many are known."""
        return self.known.expand(torch.broadcast_shapes(self.known.shape, y.shape)).flatten(1).sum(1)

    def turn(self, y: Tensor) -> Tensor:
        """y: A A^T is diagonal."""
        return y

    def back(self, c: Tensor) -> Tensor:
        """c."""
        return c

    def squares(self, like: Tensor) -> Tensor:
        """1 where known, else 0."""
        return self.known.to(like.dtype)


class Separable(Operator):
    """One matrix (m_i, n_i) along each of the last axes of x0: blurs with walls, averages, any resampling filter. See `blur`, `pool`.

    A A^T is the Kronecker product of the matrices' own, so its basis is that of their singular vectors. Raises ConfigError for what is no
    matrix.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        super().__init__()
        wrong = [tuple(matrix.shape) for matrix in matrices if matrix.ndim != 2]
        if wrong or not matrices:
            raise ConfigError(f"matrices: got shapes {wrong}, must be one matrix (outputs, inputs) for each of the last axes")
        self.axes = len(matrices)
        for i, matrix in enumerate(matrices):
            u, s, _ = torch.linalg.svd(matrix.to(torch.float64))
            self.register_buffer(f"matrix{i}", matrix.to(torch.float64))
            self.register_buffer(f"basis{i}", u)
            self.register_buffer(f"squares{i}", torch.cat([s**2, s.new_zeros(len(u) - len(s))]))

    def _along(self, name: str, x: Tensor, transposed: bool) -> Tensor:
        for i in range(self.axes):
            matrix = self.get_buffer(f"{name}{i}").to(x)
            axis = x.ndim - self.axes + i
            x = (x.movedim(axis, -1) @ (matrix if transposed else matrix.T)).movedim(-1, axis)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Every matrix along its axis."""
        return self._along("matrix", x, False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Every transposed matrix along its axis."""
        return self._along("matrix", y, True)

    def turn(self, y: Tensor) -> Tensor:
        """Into the left singular vectors of every axis."""
        return self._along("basis", y, True)

    def back(self, c: Tensor) -> Tensor:
        """Out of them."""
        return self._along("basis", c, False)

    def squares(self, like: Tensor) -> Tensor:
        """Products of the squared singular values of the axes."""
        total = torch.ones((), dtype=torch.float64, device=like.device)
        for i in range(self.axes):
            total = total[..., None] * self.get_buffer(f"squares{i}").to(like.device)
        return total.to(like.dtype)


class Convolution(Operator):
    """Convolution with a kernel along the last axes, round the edges (periodic); A A^T is diagonal in the Fourier basis.

    kernel: (k_1, ..., k_r), its middle (k // 2) on the entry computed; no larger than the data.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel.to(torch.float64))
        self.dims = tuple(range(-kernel.ndim, 0))

    def _transfer(self, shape: Sequence[int]) -> Tensor:
        sizes = tuple(shape[-self.kernel.ndim :])
        if any(size < k for size, k in zip(sizes, self.kernel.shape, strict=True)):
            raise ConfigError(f"kernel: got {tuple(self.kernel.shape)} for data of {sizes}, must not be larger")
        padded = self.kernel.new_zeros(sizes)
        padded[tuple(slice(k) for k in self.kernel.shape)] = self.kernel
        return torch.fft.fftn(padded.roll([-(k // 2) for k in self.kernel.shape], self.dims))

    def _filtered(self, x: Tensor, transfer: Tensor) -> Tensor:
        spectrum = torch.fft.fftn(x, dim=self.dims)
        return torch.fft.ifftn(spectrum * transfer.to(spectrum.dtype), dim=self.dims).real

    def forward(self, x: Tensor) -> Tensor:
        """The data convolved with the kernel."""
        return self._filtered(x, self._transfer(x.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        """The data correlated with it."""
        return self._filtered(y, self._transfer(y.shape).conj())

    def turn(self, y: Tensor) -> Tensor:
        """The Fourier transform, orthonormal."""
        return torch.fft.fftn(y, dim=self.dims, norm="ortho")

    def back(self, c: Tensor) -> Tensor:
        """The inverse transform."""
        return torch.fft.ifftn(c, dim=self.dims, norm="ortho").real

    def squares(self, like: Tensor) -> Tensor:
        """|transfer function|^2."""
        return (self._transfer(like.shape).abs() ** 2).to(like.real.dtype)


class Dense(Operator):
    """A plain matrix (m, n) on the entries of x0 in order, n the size of `shape` = D; y is (B, m). ConfigError where they do not fit."""

    matrix: Tensor
    basis: Tensor
    values: Tensor

    def __init__(self, matrix: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        if matrix.ndim != 2 or matrix.shape[1] != math.prod(shape):
            raise ConfigError(f"matrix: got shape {tuple(matrix.shape)}, must be (m, {math.prod(shape)}) for data of shape {tuple(shape)}")
        u, s, _ = torch.linalg.svd(matrix.to(torch.float64))
        self.shape = tuple(shape)
        self.register_buffer("matrix", matrix.to(torch.float64))
        self.register_buffer("basis", u)
        self.register_buffer("values", torch.cat([s**2, s.new_zeros(len(u) - len(s))]))

    def forward(self, x: Tensor) -> Tensor:
        """matrix x."""
        return x.flatten(1) @ self.matrix.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """matrix^T y, in the shape of x0."""
        return (y @ self.matrix.to(y)).reshape(len(y), *self.shape)

    def turn(self, y: Tensor) -> Tensor:
        """Into the left singular vectors."""
        return y @ self.basis.to(y)

    def back(self, c: Tensor) -> Tensor:
        """Out of them."""
        return c @ self.basis.T.to(c)

    def squares(self, like: Tensor) -> Tensor:
        """Squared singular values, zeros for the rest."""
        return self.values.to(like)


def blur(sizes: Sequence[int], width: float) -> Separable:
    """Gaussian blur of standard deviation `width` (entries) along the last axes, of these sizes, mirrored at the edges, cut at 4 widths.

    It nearly erases fine detail: state the noise of y, for its pseudo-inverse blows noise up. ConfigError unless 0 < width < inf.
    """
    if not (math.isfinite(width) and width > 0):
        raise ConfigError(f"width: got {width}, must be a positive number of entries")
    matrices: list[Tensor] = []
    reach = math.ceil(4 * width)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.to(torch.float64) / width) ** 2)
    for size in sizes:
        places = (torch.arange(size)[:, None] + offsets) % (2 * size)
        mirrored = torch.where(places < size, places, 2 * size - 1 - places)
        matrices.append(
            torch.zeros(size, size, dtype=torch.float64).scatter_add(1, mirrored, (weights / weights.sum()).expand(size, -1).contiguous())
        )
    return Separable(matrices)


def pool(sizes: Sequence[int], factor: int) -> Separable:
    """Down-sampling along the last axes, of these sizes, by averages of `factor` neighbours; ConfigError where it does not divide them."""
    if factor < 1 or any(size % factor for size in sizes):
        raise ConfigError(f"factor: got {factor}, must divide every one of the sizes {tuple(sizes)}")
    return Separable([torch.eye(size // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor for size in sizes])
