"""Look-up tables."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_primitives import embedding

from ._checks import describe, shape_text
from ._errors import ConfigurationError, InputTypeError
from ._init import LECUN_UNIFORM, Initializer, Size, as_count, as_size, parameter
from ._layer import Layer


class Embedding(Layer):
    r"""Table of vectors looked up by index, learnt online.

    .. math:: y = W_{x}

    Parameters
    ----------
    num_embeddings : int
        Number of rows N.
    embedding_size : int or tuple of int
        Shape E of one vector.
    embedding_init : callable, array or number
        Initial table, shape ``(N, *E)``. Lecun uniform by default.
    padding_idx : int, optional
        Row that is no word: it starts at zero and gets no gradient.
    max_norm : float, optional
        Vectors with a larger norm are scaled down to it where they are looked up. The gradient passes
        straight through; the table itself stays as it is.
    norm_type : float
        p of that norm.
    scale_grad_by_freq : bool
        Refused: the frequency of an index over a sequence is not known while the sequence runs.
    freeze : bool
        Keep the table fixed: an ordinary look-up in a state that is no parameter.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        Shape ``(N, *E)``; a ``brainstate.LongTermState`` if frozen.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> table = Embedding(10, 3, padding_idx=0)
    >>> table(jnp.array([[1, 2], [0, 5]])).shape, table(jnp.array(0)).tolist()
    ((2, 2, 3), [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_size: Size,
        embedding_init: Initializer = LECUN_UNIFORM,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        freeze: bool = False,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.num_embeddings = as_count(num_embeddings, "num_embeddings")
        self.embedding_size = self.out_size = as_size(embedding_size, "embedding_size")
        if padding_idx is not None and not 0 <= padding_idx < self.num_embeddings:
            raise ConfigurationError(
                "`padding_idx` is no row of the table.",
                found=repr(padding_idx),
                expected=f"0 <= padding_idx < {self.num_embeddings}",
            )
        if max_norm is not None and max_norm <= 0:
            raise ConfigurationError("`max_norm` is not a norm.", found=repr(max_norm), expected="max_norm > 0")
        if scale_grad_by_freq:
            raise ConfigurationError(
                "Gradients cannot be scaled by frequency online: it is known only when the sequence is over.",
                fix="leave scale_grad_by_freq out, and weight the loss where rare indices should count more",
            )
        self.padding_idx, self.freeze = padding_idx, freeze
        self.max_norm, self.norm_type = max_norm, norm_type
        table = parameter(embedding_init, (self.num_embeddings, *self.embedding_size), "embedding_init")
        if padding_idx is not None and callable(embedding_init):
            table = table.at[padding_idx].set(0)
        self.weight = (brainstate.LongTermState if freeze else param_type)(table)

    @classmethod
    def from_pretrained(cls, embeddings: Any, freeze: bool = True, **options: Any) -> "Embedding":
        """A layer around an existing table, shape ``(N, *E)``, frozen unless `freeze` is false.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> Embedding.from_pretrained(jnp.arange(6.0).reshape(3, 2))(jnp.array(2)).tolist()
        [4.0, 5.0]
        """
        table = jnp.asarray(embeddings)
        num_embeddings, *size = table.shape
        return cls(num_embeddings, size, embedding_init=table, freeze=freeze, **options)

    def update(self, indices: Any) -> jax.Array:
        """Look up integer indices of any shape; the result has shape ``(*indices.shape, *E)``.

        Raises
        ------
        InputTypeError
            If `indices` are not integers.
        """
        indices = indices if hasattr(indices, "dtype") else jnp.asarray(indices)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise InputTypeError(
                "Indices must be integers.",
                where=describe(self),
                found=shape_text(indices),
                expected="an integer type",
                fix="convert them, for instance by x.astype('int32')",
            )
        table = self.weight.value.reshape(self.num_embeddings, -1)
        look_up = _plain_look_up if self.freeze else embedding
        rows = self._renormed(look_up(indices, self._without_padding(table)))
        return rows.reshape(*indices.shape, *self.embedding_size)

    def _without_padding(self, table: jax.Array) -> jax.Array:
        if self.padding_idx is None:
            return table
        learnt = jnp.arange(self.num_embeddings)[:, None] != self.padding_idx
        return jnp.where(learnt, table, jax.lax.stop_gradient(table))

    def _renormed(self, rows: jax.Array) -> jax.Array:
        if self.max_norm is None:
            return rows
        norms = jnp.linalg.norm(rows, self.norm_type, axis=-1, keepdims=True)
        surplus = rows * (1 - self.max_norm / jnp.maximum(norms, self.max_norm))
        return rows - jax.lax.stop_gradient(surplus)


def _plain_look_up(indices: jax.Array, table: jax.Array) -> jax.Array:
    return table.at[indices].get(mode="fill", fill_value=jnp.nan)
