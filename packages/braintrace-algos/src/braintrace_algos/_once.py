"""Online gradients are not differentiated again: what they hold fixed, second derivatives would leave out silently."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._errors import LearnerError


def differentiable_once(values: Any) -> Any:
    """`values`, the gradient by which is `final`."""
    return _of_inexact(_differentiable_once, values)


def final(gradients: Any) -> Any:
    """`gradients`, refused by reverse mode."""
    return _of_inexact(_final, gradients)


def _of_inexact(function: Callable[[list[Any]], list[Any]], values: Any) -> Any:
    leaves, tree = jax.tree.flatten(values)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    for i, leaf in zip(places, function([leaves[i] for i in places]), strict=True):
        leaves[i] = leaf
    return tree.unflatten(leaves)


@jax.custom_vjp
def _final(leaves: list[Any]) -> list[Any]:
    return leaves


@jax.custom_vjp
def _differentiable_once(leaves: list[Any]) -> list[Any]:
    return leaves


def _refuse(_: None, cotangents: Any) -> Any:
    raise LearnerError(
        "The gradients of a learner cannot be differentiated again.",
        found="a derivative of something that depends on online gradients",
        expected="first derivatives; online gradients hold the past fixed, and so would leave part of the second out",
        fix="differentiate the model twice, through its steps, or put jax.lax.stop_gradient around the gradients",
    )


_final.defvjp(lambda leaves: (leaves, None), _refuse)
_differentiable_once.defvjp(lambda leaves: (leaves, None), lambda _, cotangents: (final(cotangents),))
