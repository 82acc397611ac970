"""What came with this modeld beside its code? The unit: of the checkout, or packed by the build."""

from __future__ import annotations

import pkgutil

from modeld.llm.bundle import PACKAGE

UNIT = "modeld.service"


def shipped_unit() -> str | None:
    """Its text; None where it was not packed."""
    beside = PACKAGE.parent / "deploy" / UNIT
    try:
        return beside.read_text("utf-8")
    except OSError:
        pass
    try:
        data = pkgutil.get_data("modeld", f"deploy/{UNIT}")
    except OSError:
        return None
    return data.decode("utf-8", "replace") if data is not None else None
