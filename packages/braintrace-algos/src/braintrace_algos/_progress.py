"""A progress bar that a compiled loop can advance."""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

try:
    from tqdm.auto import tqdm
except ImportError:  # pragma: no cover - exercised in an environment without tqdm
    tqdm = None


class Progress:
    """Progress over the time steps of one sequence, with the current loss and the steps per second.

    Shows a tqdm bar where tqdm is installed, and a line on stderr otherwise. It starts again by itself when the code
    that advances it runs again.

    Parameters
    ----------
    total : int
        Number of time steps.
    label : str
    """

    def __init__(self, total: int, label: str):
        self.total, self.label = total, label
        self._bar: Any = None
        self.begin()

    def begin(self) -> None:
        """Forget a run that was cut short."""
        if self._bar is not None:
            self._bar.close()
        self.done, self._start, self._bar = 0, time.perf_counter(), None

    def advance(self, losses: Any = None) -> None:
        """Called from compiled code at the end of a window, with its losses; or after a step that has none."""
        if losses is None:
            jax.debug.callback(self._show, 1, ordered=True)
        else:
            jax.debug.callback(self._show, losses.shape[0], jnp.mean(losses), ordered=True)

    def _show(self, steps: Any, loss: Any = None) -> None:
        if not self.done:
            self.begin()
            self._bar = tqdm(total=self.total, desc=self.label, unit="step") if tqdm is not None else None
        self.done += int(steps)
        finished = self.done >= self.total
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix(loss=f"{float(loss):.4g}", refresh=False)
            self._bar.update(int(steps))
        else:
            rate = self.done / max(time.perf_counter() - self._start, 1e-9)
            of_loss = "" if loss is None else f"  loss {float(loss):.4g}"
            line = f"{self.label}: {100 * self.done // self.total:3d} %{of_loss}  {rate:.3g} steps/s"
            print(f"\r{line}", end="\n" if finished else "", file=sys.stderr)
        if finished:
            self.begin()
