"""Learning from a stream that never ends, in bounded memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ._checks import check_steps
from ._errors import LearnerError
from ._train import History, Training

_BLOCK = 32


class Streaming(Training):
    """The method of a learner that takes its data from an iterator."""

    def etrace_stream(
        self,
        stream: Iterable[Any],
        *,
        step_fn: Callable[..., Any],
        optimizer: Any,
        update_every: int = 1,
        block: int | None = None,
        weights: dict[Any, brainstate.State] | None = None,
        has_aux: bool = False,
    ) -> Iterator[History]:
        """Learn online from an iterator of unknown length.

        The updates are those of one `etrace_train` over the whole stream; only `block` steps of it are in memory at a
        time. Nothing happens until the result is iterated over.

        Parameters
        ----------
        stream : iterable
            Gives the input of one time step at a time: a tuple of the arguments of `step_fn`, or its only argument.
        step_fn, optimizer, update_every, weights, has_aux
            As in `etrace_train`.
        block : int, optional
            Steps that are stacked and handed to compiled code at once; a multiple of `update_every`.
        weights, has_aux
            As in `etrace_train`.

        Yields
        ------
        History
            Of each block; the last one may be shorter.

        Raises
        ------
        LearnerError
            If `block` is no multiple of `update_every`.

        Examples
        --------
        >>> import itertools
        >>> import brainstate, jax.numpy as jnp, numpy as np, optax
        >>> from braintrace_algos import compile
        >>> from braintrace_primitives import matmul
        >>> class Leaky(brainstate.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = brainstate.ParamState(jnp.zeros((2, 3)))
        ...     def init_state(self, batch_size=None):
        ...         self.h = brainstate.HiddenState(jnp.zeros(3))
        ...     def update(self, x):
        ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
        ...         return self.h.value
        >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros(2))
        >>> forever = itertools.repeat(np.ones(2, np.float32))
        >>> for history in learner.etrace_stream(
        ...     forever, step_fn=lambda x: ((learner(x) - 1) ** 2).mean(), optimizer=optax.sgd(0.1)
        ... ):
        ...     if history.losses[-1] < 1e-3:
        ...         break
        """
        check_steps("update_every", update_every)
        block = update_every * -(-_BLOCK // update_every) if block is None else block
        check_steps("block", block)
        if block % update_every:
            raise LearnerError(
                "Updates must not fall between two blocks.",
                where="etrace_stream",
                found=f"block={block}, update_every={update_every}",
                expected="a multiple of update_every",
            )
        options = {"step_fn": step_fn, "optimizer": optimizer, "weights": weights, "has_aux": has_aux}

        def learn() -> Iterator[History]:
            steps = iter(stream)
            while items := [_arguments(item) for item in itertools.islice(steps, block)]:
                yield self.etrace_train(*jax.tree.map(_stack, *items), update_every=update_every, **options)

        return learn()


def _arguments(item: Any) -> tuple[Any, ...]:
    return item if isinstance(item, tuple) else (item,)


def _stack(*steps: Any) -> Any:
    """Values of one leaf, stacked over time where they are."""
    return jnp.stack(steps) if isinstance(steps[0], jax.Array) else np.stack(steps)
