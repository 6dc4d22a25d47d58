"""What goes into a fold and what comes out."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Window(NamedTuple):
    """K steps as a driver recorded them; every leaf has a leading time axis.

    Attributes
    ----------
    tape : pytree
        What the carry observed of the steps.
    b : sequence
        Cotangent of each operation's output, dl^t/dy.
    signals : dict
        Group -> (K, S, *positions): q^t = dl^t/dh^{t-1}, or L^t = dl^t/dh^t where the plan's signal is "state".
        Empty where `b` is complete and the past enters as a whole.
    scale : array (K,)
        Weight of each step's loss.
    """

    tape: Any
    b: Sequence[Any]
    signals: dict[int, Any]
    scale: Any


class Folded(NamedTuple):
    """A window, folded.

    Attributes
    ----------
    x, g : list
        For each operation (K, *x) or None, and (K, *y): the weight gradient is the op's pullback of g at x.
    past : list of dict
        For each operation what the past adds to the gradient of its weights.
    carry : pytree
        At the exit.
    theta : list
        For each parameter leaf what the past adds to its gradient; empty where `past` says it all.
    """

    x: list[Any]
    g: list[Any]
    past: list[dict[str, Any]]
    carry: Any
    theta: Sequence[Any] = ()
