"""How many steps a driver folds at once."""

from typing import NamedTuple

_SMALL = 6 << 20
"""Bytes of a tape that need not be spared."""


class FoldLength(NamedTuple):
    """A number of steps to fold at once, and why so many.

    Attributes
    ----------
    steps : int
    reason : str
    window : int, optional
        Steps of them that are differentiated as a whole, K. None where each step is, its entry state held fixed.
    """

    steps: int
    reason: str
    window: int | None = None


def auto_fold(held: int, per_step: int, T: int, window: int | None = None) -> FoldLength:
    """As many steps as have a tape of the size of the traces: 16 to 256 of them, or 64 where there are no traces.

    A fold saves passes over the traces, so that it may take as much memory as they do. Where they are small, 16 steps
    still keep what is done once for each fold from weighing much; up to 64 are taken while they fit 6 MB.

    Parameters
    ----------
    held, per_step : int
        Bytes of the traces, and of what one step leaves on the tape.
    T : int
    window : int, optional
        Steps that are differentiated as a whole: one window of them at least, and no part of one.
    """
    unit = window or 1
    steps = held // max(per_step, 1)
    if not held:
        steps, reason = 64, "there are no traces"
    elif steps < 16:
        steps = min(max(_SMALL // max(per_step, 1), 16), 64)
        reason = "no less, though the tape takes more than the traces"
    elif steps > 256:
        steps, reason = 256, "no more, though the tape takes less than the traces"
    else:
        reason = "the tape takes about as much as the traces"
    if steps >= T:
        return FoldLength(T, "the whole sequence", window)
    if steps < 2 * unit:
        return FoldLength(unit, f"window={unit}", window)
    # A divisor of T leaves no rest that would be compiled for itself; short of one, folds of nearly equal length.
    divisor = next((k for k in range(steps - steps % unit, steps // 2, -unit) if T % k == 0), None)
    even = -(-T // -(-T // steps))
    return FoldLength(divisor or even - even % unit, reason, window)
