"""Layers whose weight matrix has a structure: blocks, low rank, or few entries."""

from collections.abc import Callable
from typing import Any

import brainstate
import jax.numpy as jnp
from brainstate.nn import init

from braintrace_primitives import SparsityPattern, grouped_matmul, lora_matmul, sparse_matmul

from ._checks import features
from ._init import KAIMING_NORMAL, LECUN_NORMAL, ZEROS, Initializer, Size, as_count, parameter, sizes_around
from ._layer import Layer


class GroupedLinear(Layer):
    r"""Independent dense layers side by side, one per group of features (a block-diagonal weight).

    .. math:: y_g = x_g W_g + b_g

    Parameters
    ----------
    num_groups, in_features, out_features : int
        Number of groups G, and input features K and output features N of each.
    w_init : callable, array or number
        Initial weight, shape (G, K, N). A callable draws every block by itself, shape (K, N); Kaiming normal
        by default.
    b_init : callable, array, number or None
        Initial bias, shape (G, N). Zero by default; ``None`` leaves the bias out.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (G, K, N), "bias": (G, N)}``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = GroupedLinear(num_groups=2, in_features=4, out_features=3)
    >>> layer(jnp.ones((5, 2, 4))).shape
    (5, 2, 3)
    """

    def __init__(
        self,
        num_groups: int,
        in_features: int,
        out_features: int,
        w_init: Initializer = KAIMING_NORMAL,
        b_init: Initializer | None = ZEROS,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        groups, num_in = as_count(num_groups, "num_groups"), as_count(in_features, "in_features")
        num_out = as_count(out_features, "out_features")
        self.in_size, self.out_size = (groups, num_in), (groups, num_out)
        params = {"weight": parameter(_blockwise(w_init), (groups, num_in, num_out), "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, self.out_size, "b_init")
        self.weight = param_type(params)

    def update(self, x: Any) -> Any:
        """Map the features of each group: shape (..., G, K) to (..., G, N)."""
        params = self.weight.value
        return grouped_matmul(features(self, x, *self.in_size), params["weight"], params.get("bias"))


def _blockwise(initializer: Initializer) -> Initializer:
    if not callable(initializer):
        return initializer
    return lambda shape: jnp.stack([initializer(shape[1:]) for _ in range(shape[0])])


class LoRA(Layer):
    r"""Low-rank dense layer, alone or added to another layer (Hu et al. 2022).

    .. math:: y = \frac{1}{r} x A B \; [\, + \mathrm{base}(x)]

    with A = ``lora_a`` and B = ``lora_b``.

    Parameters
    ----------
    in_features, lora_rank, out_features : int
        Numbers of input features I and output features O, and rank r.
    base_module : callable, optional
        Layer from I to O features that is added.
    kernel_init : callable, array or number
        Initial value of both factors. Lecun normal by default.
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.
    in_size : int or tuple of int, optional
        Full shape of the input where it has more than one axis; its last entry is I.
    carry_b : bool
        Whether the credit of ``lora_a`` is carried across windows, at the price of a trace as large as a
        dense layer's. Without it ``lora_a`` learns from the present window only.
    name : str, optional

    Attributes
    ----------
    weight : ParamState
        ``{"lora_a": (I, r), "lora_b": (r, O)}``.

    References
    ----------
    E. J. Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022, arXiv:2106.09685.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> LoRA(4, 2, 3)(jnp.ones((5, 4))).shape
    (5, 3)
    """

    def __init__(
        self,
        in_features: int,
        lora_rank: int,
        out_features: int,
        *,
        base_module: Callable | None = None,
        kernel_init: Initializer = LECUN_NORMAL,
        param_type: type = brainstate.ParamState,
        in_size: Size | None = None,
        carry_b: bool = True,
        name: str | None = None,
    ):
        super().__init__(name=name)
        num_in, rank = as_count(in_features, "in_features"), as_count(lora_rank, "lora_rank")
        num_out = as_count(out_features, "out_features")
        self.in_size, self.out_size = sizes_around(num_in, num_out, in_size)
        self.lora_rank, self.base_module, self.carry_b = rank, base_module, carry_b
        self.weight = param_type(
            {
                "lora_a": parameter(kernel_init, (num_in, rank), "kernel_init"),
                "lora_b": parameter(kernel_init, (rank, num_out), "kernel_init"),
            }
        )

    def update(self, x: Any) -> Any:
        """Map the last axis: shape (..., I) to (..., O)."""
        x = features(self, x, self.in_size[-1])
        params = self.weight.value
        a, b = params["lora_a"], params["lora_b"]
        y = lora_matmul(x, a, b, alpha=1 / self.lora_rank, carry_b=self.carry_b)
        return y if self.base_module is None else y + self.base_module(x)


class SparseLinear(Layer):
    r"""Dense layer of few connections: only the stored entries of W exist and are learnt.

    .. math:: y = x W + b

    Parameters
    ----------
    spar_mat : SparsityPattern or sparse matrix, shape (I, O)
        Which connections exist: a `braintrace_primitives.SparsityPattern`, or a BCOO, BCSR, brainevent or SciPy
        matrix, whose data are then the initial weights.
    b_init : callable, array, number or None
        Initial bias, shape (O,). No bias by default.
    in_size : int or tuple of int, optional
        Full shape of the input where it has more than one axis; its last entry is I.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.
    w_init : callable, array or number, optional
        Initial entries, shape (nnz,), instead of the data of the matrix. For a bare pattern the default is
        normal with variance 2 O / nnz, Kaiming's for the mean number of connections per unit.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (nnz,), "bias": (O,)}``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace_primitives import SparsityPattern
    >>> layer = SparseLinear(SparsityPattern([0, 0, 2], [0, 1, 1], (3, 2)), w_init=1.0)
    >>> layer(jnp.array([1.0, 10.0, 100.0])).tolist()
    [1.0, 101.0]
    """

    def __init__(
        self,
        spar_mat: Any,
        b_init: Initializer | None = None,
        in_size: Size | None = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        w_init: Initializer | None = None,
    ):
        super().__init__(name=name)
        self.pattern = SparsityPattern.from_matrix(spar_mat)
        num_in, num_out = self.pattern.shape
        self.in_size, self.out_size = sizes_around(num_in, num_out, in_size)
        kaiming = init.Normal(scale=(2 * num_out / max(self.pattern.nnz, 1)) ** 0.5)
        entries = getattr(spar_mat, "data", kaiming) if w_init is None else w_init
        params = {"weight": parameter(entries, (self.pattern.nnz,), "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, (num_out,), "b_init")
        self.weight = param_type(params)

    def update(self, x: Any) -> Any:
        """Map the last axis: shape (..., I) to (..., O)."""
        x = features(self, x, self.in_size[-1])
        params = self.weight.value
        return sparse_matmul(x, params["weight"], sparse_mat=self.pattern, bias=params.get("bias"))
