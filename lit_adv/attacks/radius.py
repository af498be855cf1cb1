"""Perturbation budgets, written as papers write them."""

from __future__ import annotations

from typing import TYPE_CHECKING


class _Radius(float):
    """A number in pixel units of ``[0, 1]``, from ``0.03``, ``"0.03"`` or ``"8/255"``.

    Raises:
        ValueError: The text is neither a number nor a fraction of two numbers, or is not finite.
    """

    def __new__(cls, value: float | str) -> _Radius:
        return super().__new__(cls, parse(value))


def parse(value: float | str) -> float:
    """Reads ``"8/255"``, ``"0.03"`` or a number; anything else is a ``ValueError``."""
    try:
        if isinstance(value, str):
            numerator, slash, denominator = value.partition("/")
            number = float(numerator) / float(denominator) if slash else float(numerator)
        else:
            number = float(value)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"a radius must be a number or a fraction such as 8/255, got {value!r}") from error
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"a radius must be finite, got {value!r}")
    return number


if TYPE_CHECKING:
    Radius = float
else:
    Radius = _Radius
    Radius.__name__ = Radius.__qualname__ = "Radius"
