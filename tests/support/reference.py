"""The page `ops/docs/reference.md`, which must document the whole public interface."""

from __future__ import annotations

from pathlib import Path

REFERENCE = (Path(__file__).parents[2] / "ops" / "docs" / "reference.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """One section of the reference."""
    _, _, rest = REFERENCE.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]
