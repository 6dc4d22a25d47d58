"""The structure of a step against the Jacobian of that step at random points."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_compiler import extract_module_info
from braintrace_compiler._dependence import step_structure
from braintrace_primitives import SparsityPattern, conv, element_wise, embedding, matmul, sparse_matmul

N = 6
RNG = np.random.default_rng(0)
NWC = ("NWC", "WIO", "NWC")
MASK = RNG.random((N, N)) < 0.3


@jax.custom_vjp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g * jnp.exp(-(v**2)),))


def looped(h, w):
    return jax.lax.scan(lambda c, x: (0.5 * c + x, c * w), jnp.zeros(N), jnp.stack([h, 2 * h]))[1].sum(0)


STEPS = {
    "masked weight": (lambda h, w: jnp.tanh(matmul(h, w * MASK)), (N, N)),
    "chosen weight": (lambda h, w: jax.nn.relu(h @ jnp.where(MASK, w, 0.0)), (N, N)),
    "masked and transposed": (lambda h, w: h + matmul(h, (-w * MASK).T.reshape(N, N)), (N, N)),
    "stored sparse": (
        lambda h, w: spike(sparse_matmul(h, w, sparse_mat=SparsityPattern.from_dense(MASK))),
        (int(MASK.sum()),),
    ),
    "convolution": (
        lambda h, w: conv(h[:, None], w, strides=1, padding="SAME", dimension_numbers=NWC)[:, 0],
        (3, 1, 1),
    ),
    "one weight each": (lambda h, w: h[::-1] + element_wise(w) * h, (N,)),
    "added up": (lambda h, w: jnp.zeros(N).at[np.array([0, 0, 2, 5, 5, 5])].add(h * w), (N,)),
    "sums of parts": (lambda h, w: jnp.repeat((h * w).reshape(2, 3).sum(1), 3), (N,)),
    "looked up": (lambda h, w: h + embedding((h > 0).sum() % 2, w), (2, N)),
    "a loop": (looped, (N,)),
    "two matrices": (lambda h, w: jnp.tanh(matmul(matmul(h, w[0] * MASK), w[1] * MASK.T)), (2, N, N)),
    "nothing passes": (lambda h, w: jax.lax.stop_gradient(h) * w, (N,)),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_structure_is_that_of_the_jacobian(name):
    step, shape = STEPS[name]

    class Model(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones(shape))

        def init_state(self):
            self.h = brainstate.HiddenState(jnp.zeros(N))

        def update(self, x):
            self.h.value = step(self.h.value, self.w.value) + x

    model = Model()
    model.init_state()
    minfo = extract_module_info(model, jnp.zeros(N))
    structure = step_structure(minfo, minfo.hidden)
    seen = [np.zeros((N, N), bool), np.zeros((N, int(np.prod(shape))), bool)]
    for _ in range(8):
        point = (jnp.asarray(RNG.normal(size=size), jnp.float32) for size in (N, shape))
        for found, J in zip(seen, jax.jit(jax.jacrev(step, (0, 1)))(*point), strict=True):
            found |= np.asarray(J).reshape(N, -1) != 0
    assert (structure.between.toarray() == seen[0]).all()
    assert (structure.of_parameters[0].toarray() == seen[1]).all()
