"""Weights of an exponential integrator: int m dW when m is the polynomial through its values at some instants.

Nothing here is tabulated: the weights are integrals of Lagrange polynomials, by Gauss-Legendre quadrature in float64. In the variable
lambda = log(alpha/sigma) they are the phi-functions of the exponential integrators, phi_k(h) = int_0^1 e^((1 - r) h) r^(k-1)/(k-1)! dr.
"""

# numpy's and torch's functions used here leave their results untyped; they are annotated.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm.process import At, Process
from ddpm.process.flow import Kind, Variable, at_lambda, coordinate, density, measure, scale, total

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch

POINTS = 64  # of the quadrature: rounding error only, up to steps of 16 in lambda


def gauss(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Abscissas and weights on [low, high], (R, POINTS)."""
    import numpy as np

    places, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(POINTS))
    half = (high - low)[:, None] / 2
    return low[:, None] + half * (places + 1.0), half * weights


def lagrange(nodes: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The polynomials that are 1 at one node and 0 at the others: nodes (R, P), v (R, G) -> (R, G, P)."""
    count = nodes.shape[1]
    columns: list[torch.Tensor] = []
    for j in range(count):
        product = torch.ones_like(v)
        for i in range(count):
            if i != j:
                product = product * (v - nodes[:, i : i + 1]) / (nodes[:, j : j + 1] - nodes[:, i : i + 1])
        columns.append(product)
    return torch.stack(columns, -1)


def weights(process: Process, s: At, t: At, nodes: At, kind: Kind, variable: Variable, tau: float = 0.0, newer: int = 0) -> torch.Tensor:
    """w with scale int_t^s m dW = sum_j w_j m_j for the polynomial m through (nodes, m_j): s, t (R,), nodes (R, P) -> (R, P).

    variable: what m is a polynomial of; "index" counts the rows, as if they were equal: the nodes `newer`, newer - 1, ...; t at 0, s at 1.
    Instants of the nodes must differ in it and be
    finite, unless P = 1. To `clean` in log_snr there is no such integral.
    """
    if nodes.t.shape[1] == 1:
        return total(s, t, kind, tau)[:, None]
    if variable == "index":
        places = (newer - torch.arange(nodes.t.shape[1], dtype=torch.float64)).expand(nodes.t.shape)
        v, dv = gauss(torch.zeros_like(t.t), torch.ones_like(t.t))
        return total(s, t, kind, tau)[:, None] * (lagrange(places, v) * dv[..., None]).sum(1)
    places = coordinate(nodes, variable)
    clean = s.sigma == 0
    if bool(clean.any()):
        rest = ~clean
        out = torch.empty_like(places)
        if bool(rest.any()):
            out[rest] = weights(process, s.take(rest), t.take(rest), nodes.take(rest), kind, variable, tau)
        out[clean] = _to_clean(process, s.take(clean), t.take(clean), places[clean], kind, variable)
        return out
    if variable == "time":
        return scale(s, kind, tau)[:, None] * _by_parts(process, s, t, places, kind, tau)
    if kind == "flow" and variable == "level":  # W is the level itself
        v, dv = gauss(t.level, s.level)
        return scale(s, kind)[:, None] * (lagrange(places, v) * dv[..., None]).sum(1)
    lam, dlam = gauss(t.log_snr / 2, s.log_snr / 2)
    at = at_lambda(lam)
    return scale(s, kind, tau)[:, None] * (lagrange(places, coordinate(at, variable)) * (density(at, kind, tau) * dlam)[..., None]).sum(1)


def _to_clean(process: Process, s: At, t: At, places: torch.Tensor, kind: Kind, variable: Variable) -> torch.Tensor:
    """The weights of a last step: x0 is read off at `clean`; W of eps and flow ends there at 0."""
    end = coordinate(s, variable)
    if kind == "x0":
        return lagrange(places, end[:, None])[:, 0]
    if variable == "time":
        return scale(s, kind)[:, None] * _by_parts(process, s, t, places, kind, 0.0)
    w, dw = gauss(measure(t, kind), measure(s, kind))
    if kind == "eps":
        v = w if variable == "ratio" else w / (1.0 + w)
    else:
        v = w if variable == "level" else w / (1.0 - w)
    return scale(s, kind)[:, None] * (lagrange(places, v) * dw[..., None]).sum(1)


def _by_parts(process: Process, s: At, t: At, places: torch.Tensor, kind: Kind, tau: float) -> torch.Tensor:
    """int l dW = [l W] - int W l' dt: needs no derivative of the schedule, which a table has not everywhere."""
    v, dv = gauss(t.t, s.t)
    w = measure(process.at(v.reshape(-1)), kind, tau).reshape(v.shape)
    ends = [lagrange(places, at.t[:, None])[:, 0] * measure(at, kind, tau)[:, None] for at in (s, t)]

    def basis(value: torch.Tensor) -> torch.Tensor:
        return lagrange(places, value)

    slope = torch.func.jvp(basis, (v,), (torch.ones_like(v),))[1]
    return ends[0] - ends[1] - (slope * (w * dv)[..., None]).sum(1)
