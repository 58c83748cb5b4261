"""report.html: one page with everything in it, pictures included, that opens without a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from html import escape
from typing import Any

from PIL import Image

from ddpm.evaluation.report.charts import Spot, bars, lines

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#1b1b1b}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25em .9em .25em 0;text-align:left;vertical-align:top}
td.n{text-align:right;white-space:nowrap}th{font-weight:600;border-bottom:1px solid #bbb}.note{color:#555;font-size:.92em}
.warn{background:#fff4e0;border-left:4px solid #e09a2b;padding:.5em .9em;margin:.6em 0}img{image-rendering:pixelated;max-width:100%}
figure{display:inline-block;margin:.5em 1.2em .5em 0;vertical-align:top}figcaption{font-size:.9em;color:#444}"""

ABOUT = {  # name: (what it is called, which way is better, what it says)
    "frechet": ("Frechet distance", "lower", "of the features, taken as Gaussian; corrected for the number of samples"),
    "frechet_alike": ("Frechet distance, equal numbers", "lower", "uncorrected, of as many samples as there are unseen data"),
    "kernel": ("kernel distance (KID)", "lower", "without bias; below 0 by chance where the two are alike"),
    "inception_score": ("Inception score", "higher", "sure of each sample, and all classes occur"),
    "precision": ("precision", "higher", "share of samples among the data"),
    "recall": ("recall", "higher", "share of the data among the samples"),
    "density": ("density", "near 1", "how deep among the data the samples lie"),
    "coverage": ("coverage", "higher", "share of the data with a sample nearby"),
    "sliced_wasserstein": ("sliced Wasserstein distance", "lower", "of the entries themselves, in standard deviations"),
    "energy": ("energy distance", "lower", "of the entries themselves"),
    "channel_values": ("values of the worst channel", "lower", "Wasserstein distance, in standard deviations"),
    "spectrum": ("spectrum of the worst channel", "lower", "root mean square of log power over wave numbers"),
}

WIDE = 960  # pixels on the screen


def picture(image: Image.Image) -> str:
    """An <img> that holds its own bytes; small ones are enlarged by a whole number."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    shown = image.width * max(1, WIDE // image.width)
    return f'<img alt="samples" width="{shown}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def page(report: Mapping[str, Any], pictures: Mapping[str, Image.Image]) -> str:
    """The whole page, of a report's content and named pictures: "samples", "neighbours"."""
    sampling, protocol, count = report.get("sampling"), report["protocol"], f"{report['n']:,} samples"
    made = f"Step {report['step']}; {count} by {escape(sampling['told'])}" if sampling else f"{count} from files, by whatever tool"
    foreign = "" if protocol["rows"] else f", in Frechet distance against the {escape(protocol['data'])} of another tool,"
    body = [
        f"<h1>{escape(report['run'])}</h1>",
        f'<p class="note">{made}. '
        f"Scored against the rows {escape(report['rows'])} of {escape(report['data'])} (fingerprint {escape(report['fingerprint'][:12])})"
        f"{foreign} by the extractor {escape(protocol['extractor'])}. ddpm {escape(report['version'])}.</p>",
        *(f'<div class="warn">{escape(line)}</div>' for line in report["warnings"]),
        "<h2>Scores</h2>",
        scores(report["scores"], report.get("real")),
    ]
    if "samples" in pictures:
        body += ["<h2>Samples</h2>", picture(pictures["samples"])]
    if "neighbours" in pictures:
        body += [
            "<h2>Nearest neighbours</h2>",
            '<p class="note">From left to right: a sample, the training sample nearest to it by features, the nearest one held out. '
            "The first half are the samples nearest of all to training data.</p>",
            picture(pictures["neighbours"]),
        ]
    body += [*memory(report["scores"].get("memorisation")), *curves(report), *losses(report.get("losses")), *colours(report.get("drift"))]
    if report.get("bits_per_dim"):
        found = report["bits_per_dim"]
        body += [
            "<h2>Likelihood</h2>",
            f"<p>{found['value']:.4f} {escape(found['unit'])} &plusmn; {found['error']:.4f} of {found['samples']} held-out samples, "
            "by the continuous bound.</p>",
        ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report["run"])}: report</title><style>{STYLE}</style>'
    return f"{head}<body>{''.join(body)}</body></html>\n"


def scores(mine: Mapping[str, Any], real: Mapping[str, Any] | None) -> str:
    """A row a score: the samples', that of unseen real data, which way is better."""
    rows = ["<table><tr><th>score<th>samples<th>real data, unseen<th>better<th>"]
    for name, (called, better, about) in ABOUT.items():
        if name not in mine:
            continue
        cells = [number(one.get(name)) if one else "" for one in (mine, real)]
        rows.append(f'<tr><td>{called}<td class="n">{cells[0]}<td class="n">{cells[1]}<td>{better}<td class="note">{about}')
    rows.append("</table>")
    if real is None:
        rows.append('<p class="note">Too few data are held out for a row of real data; --holdout says how many are.</p>')
    return "".join(rows)


def number(value: Mapping[str, Any] | None) -> str:
    """A figure, with its interval and the uncorrected one where it has them."""
    if value is None:
        return ""
    if _plain(value):
        return f'{value["value"]:.4g}<br><span class="note">uncorrected: too few samples for an interval</span>'
    raw = f'<br><span class="note">uncorrected {value["raw"]:.4g}</span>' if abs(value["raw"] - value["value"]) > 1e-9 else ""
    return f'{value["value"]:.4g}<br><span class="note">{value["low"]:.4g} to {value["high"]:.4g}</span>{raw}'


def memory(found: Mapping[str, Any] | None) -> list[str]:
    """What the test for copies says."""
    if found is None:
        return []
    verdict = "the model copies training data" if found["found"] else "no sign of copies"
    return [
        "<h2>Memory</h2>",
        f"<p>{verdict}: {100 * found['copies']:.2f} % of the samples are nearer to training data, beside how near they are to unseen data, "
        f"than hardly any unseen data are ({100 * found['chance']:.2g} % by chance); median of this ratio {found['ratio']:.3f} of unseen "
        f"data's; rank statistic {found['z']:.1f} standard deviations; "
        f"{100 * found['same']:.2f} % of the samples equal a training sample.</p>",
    ]


def curves(report: Mapping[str, Any]) -> list[str]:
    """Distance by network calls, by length of the weight average, by guidance scale; beside real data's where both are corrected."""
    real = (report.get("real") or {}).get("frechet")
    level = real["value"] if real and not _plain(real) else None
    labels = {"nfe": "network calls", "guidance": "guidance scale", "ema": "length of the weight average, share of the run"}
    drawn: list[str] = []
    for kind, points in report.get("sweeps", {}).items():
        if len(points) > 1:
            spots = [Spot(point["at"], point["value"], *_interval(point)) for point in points]
            chart = lines({kind: spots}, labels[kind], "Frechet distance", log_x=kind == "nfe", level=level)
            drawn.append(f"<figure>{chart}</figure>")
    if not drawn:
        return []
    some = [point for points in report["sweeps"].values() for point in points]
    plain = " Too few for an interval: distances are uncorrected, and compare with one another only." if any(map(_plain, some)) else ""
    return ["<h2>What the distance depends on</h2>", f'<p class="note">{report["sweep_n"]:,} samples a point.{plain}</p>', *drawn]


def _plain(estimate: Mapping[str, Any]) -> bool:
    """Whether it is uncorrected, and has no interval."""
    return estimate["low"] is None or math.isnan(estimate["low"])


def _interval(point: Mapping[str, Any]) -> tuple[float, float]:
    """Of a point of a curve; of no width where it has none."""
    return (point["value"], point["value"]) if _plain(point) else (point["low"], point["high"])


def losses(found: Mapping[str, Any] | None) -> list[str]:
    """Held-out loss by noise level beside a Gaussian's."""
    if found is None:
        return []
    groups = {name: {"model": value, "a Gaussian": found["gaussian"][name]} for name, value in found["bins"].items()}
    return ["<h2>Held-out loss by log-SNR</h2>", f"<figure>{bars(groups, '|eps - eps_hat|^2')}</figure>"]


def colours(found: Mapping[str, Any] | None) -> list[str]:
    """Means and spreads of the channels."""
    if not found or not found["values"]:
        return []
    rows = "".join(f'<tr><td>{escape(name.removeprefix("drift/"))}<td class="n">{value:+.4f}' for name, value in found["values"].items())
    words = "; ".join(found["words"].values()) or "nothing that is both certain and large"
    note = f'<p class="note">In standard deviations of the data: {escape(words)}.</p>'
    return ["<h2>Channels against the data</h2>", note, f"<table>{rows}</table>"]
