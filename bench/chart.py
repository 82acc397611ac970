"""How does it look, as SVG? chart(): one bar for each row of the comparison; 1 is the peer, to the right modeld is better.
curve(): the longest gap against the time to first token, a point for each max_step_ms.
"""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

LABEL, PLOT, VALUES, ROW, TOP = 300, 420, 240, 22, 56
LEAST, MOST = 0.5, 8.0  # of the axis, which is logarithmic: twice as fast and half as fast are equally far from 1


def x_of(ratio: float) -> float:
    share = (math.log2(min(max(ratio, LEAST), MOST)) - math.log2(LEAST)) / (math.log2(MOST) - math.log2(LEAST))
    return LABEL + share * PLOT


def chart(rows: list[dict[str, Any]], title: str) -> str:
    height = TOP + ROW * len(rows) + 16
    width = LABEL + PLOT + VALUES
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in (0.5, 1, 2, 4, 8):
        x = x_of(tick)
        stroke = "#444" if tick == 1 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - 12}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP - 14}" text-anchor="middle" fill="#555">{tick:g}x</text>')
    for i, row in enumerate(rows):
        ratio, medians = row["ratio"]["B"], row["medians"]
        y, start, end = TOP + i * ROW, x_of(1), x_of(ratio)
        colour = "#2b7a4b" if ratio >= 1 else "#b5442e"
        label = escape(f"{row['work']} {row['model']}, {row['title']}: {row['figure']}")
        values = escape(f"{ratio:.2f}x   {medians['modeld']:g} against {medians['B']:g} {row['unit']}")
        parts.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect x="{min(start, end):.1f}" y="{y + 2}" width="{abs(end - start):.1f}" height="{ROW - 8}" fill="{colour}"/>'
        )
        parts.append(f'<text x="{LABEL + PLOT + 12}" y="{y + 13}">{values}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def curve(rows: list[dict[str, Any]], title: str) -> str:
    """`rows` as bench.curve.measure() gives them; both axes begin at 0."""
    width, height, left, right, top, bottom = 720, 420, 80, 40, 56, 56
    most_x = max(row["late_ttft_ms"] for row in rows) * 1.1
    most_y = max(row["gap_max_ms"] for row in rows) * 1.1

    def at(ttft_ms: float, gap_ms: float) -> tuple[float, float]:
        return left + ttft_ms / most_x * (width - left - right), height - bottom - gap_ms / most_y * (height - top - bottom)

    points = [at(row["late_ttft_ms"], row["gap_max_ms"]) for row in rows]
    (x0, y0), (x1, y1) = at(0, 0), at(most_x, most_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}" fill="none" stroke="#444"/>',
        f'<text x="{(x0 + x1) / 2:.1f}" y="{height - 16}" text-anchor="middle">first token of the late prompt, ms</text>',
        f'<text x="12" y="{top - 12}">longest gap in the running streams, ms</text>',
    ]
    for axis in range(1, 5):
        (x, _), (_, y) = at(most_x * axis / 5, 0), at(0, most_y * axis / 5)
        parts.append(f'<text x="{x:.1f}" y="{y0 + 18:.1f}" text-anchor="middle" fill="#555">{most_x * axis / 5:.0f}</text>')
        parts.append(f'<text x="{x0 - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{most_y * axis / 5:.0f}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#2b7a4b" stroke-width="2"/>')
    for row, (x, y) in zip(rows, points, strict=True):
        label = f"{row['max_step_ms']}: {row['gap_max_ms']:.0f} / {row['late_ttft_ms']:.0f}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2b7a4b"/>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y - 8:.1f}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
