"""How does it look? One bar for each row of the comparison, as SVG; 1 is the peer, to the right modeld is better."""

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
