"""A progress bar that a compiled loop can advance."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

try:
    from tqdm.auto import tqdm
except ImportError:  # pragma: no cover - exercised in an environment without tqdm
    tqdm = None


class Progress:
    """Progress over the time steps of one sequence, with the current loss.

    Shows a tqdm bar where tqdm is installed, and plain percentages on stderr otherwise.

    Parameters
    ----------
    total : int
        Number of time steps.
    label : str
    """

    def __init__(self, total: int, label: str):
        self.total, self.label, self.done = total, label, 0
        self._bar = tqdm(total=total, desc=label, unit="step") if tqdm is not None else None

    def advance(self, losses: Any) -> None:
        """Called from compiled code at the end of a window, with the losses of its steps."""
        jax.debug.callback(self._show, losses.shape[0], jnp.mean(losses), ordered=True)

    def _show(self, steps: Any, loss: Any) -> None:
        self.done += int(steps)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{float(loss):.4g}", refresh=False)
            self._bar.update(int(steps))
            if self.done >= self.total:
                self._bar.close()
            return
        end = "\n" if self.done >= self.total else ""
        print(
            f"\r{self.label}: {100 * self.done // self.total:3d} %  loss {float(loss):.4g}",
            end=end,
            file=sys.stderr,
        )
