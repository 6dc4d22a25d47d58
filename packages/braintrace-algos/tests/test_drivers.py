"""Drivers as a user meets them: long streams, batches of sequences of several lengths, foreign loops and devices."""

import gc
import os
import subprocess
import sys

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

from braintrace_algos import D_RTRL, DNI, LearnerError, LearnerTypeError, MultiStepData, compile

T = 7


@pytest.fixture
def learner(recurrent_model, data):
    return compile(recurrent_model, D_RTRL, data[0][0], batch_size=data[0].shape[1])


def test_a_batch_of_sequences_of_several_lengths(recurrent_model, data, distance):
    """A mask for each sample, given as a sequence: the gradient is that of each sample cut to its length."""
    xs, ys = data
    lengths = jnp.array([T, 4, 2])[: xs.shape[1]]
    inside = (jnp.arange(T)[:, None] < lengths).astype(xs.dtype)
    learner = compile(recurrent_model, D_RTRL, xs[0], batch_size=xs.shape[1])

    def masked(x, y, inside):
        return (inside[:, None] * (learner(x) - y) ** 2).sum()

    together = learner.etrace_grad(xs, ys, inside, step_fn=masked, reduction="sum")
    learner.reset_state()
    whole = learner.etrace_grad(xs, ys, jnp.ones_like(inside), step_fn=masked, reduction="sum")
    single = compile(recurrent_model, D_RTRL, xs[0, 0])
    apart = None
    for b, length in enumerate(lengths.tolist()):
        single.reset_state()
        grads = single.etrace_grad(
            xs[:length, b], ys[:length, b], step_fn=lambda x, y: ((single(x) - y) ** 2).sum(), reduction="sum"
        )
        apart = grads if apart is None else jax.tree.map(jnp.add, apart, grads)
    assert distance(together, apart) < 1e-5
    assert distance(whole, apart) > 1e-2


@pytest.mark.parametrize("update_every", [1, 5])
def test_a_long_stream_takes_no_more_memory_than_a_short_one(learner, loss, update_every):
    """What the process holds after many blocks is what it held after few: nothing of the past is kept."""

    def stream(steps):
        for t in range(steps):
            yield np.full((3, 4), np.sin(t), np.float32), np.zeros((3, 2), np.float32)

    def live(steps):
        options = {"step_fn": lambda x, y: loss(learner(x), y), "optimizer": optimizer, "update_every": update_every}
        for _ in learner.etrace_stream(stream(steps), block=10, **options):
            pass
        gc.collect()
        return sum(leaf.nbytes for leaf in jax.live_arrays())

    optimizer = optax.adam(1e-3)
    live(20)
    assert live(400) <= live(40)
    assert int(learner.running_index.value) == 460


@pytest.mark.parametrize("wrap", [lambda xs: xs[0], MultiStepData])
def test_a_synthetic_gradient_refuses_plain_calls_under_a_derivative(recurrent_model, data, loss, wrap):
    """It would be truncated backpropagation that never learns its guess, in silence."""
    xs, ys = data
    learner = compile(recurrent_model, DNI, xs[0], batch_size=xs.shape[1], window=2)
    assert learner(wrap(xs)).shape[-2:] == ys.shape[1:]
    with pytest.raises(LearnerError, match="etrace_grad"):
        brainstate.transform.grad(lambda: learner(wrap(xs)).sum(), learner.param_states)()
    learner.reset_state()
    learner.etrace_train(xs, ys, step_fn=lambda x, y: loss(learner(x), y), optimizer=optax.sgd(0.1))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(learner.etraces.value)) > 0


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, brainstate
from jax.sharding import Mesh, PartitionSpec as P
from braintrace_algos import compile
from braintrace_primitives import matmul

class Leaky(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(0.3 * jax.random.normal(jax.random.key(0), (7, 4)))
    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros(4))
    def update(self, x):
        y = matmul(jnp.concatenate([x, self.h.value]), self.w.value)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y)
        return self.h.value

assert jax.device_count() == 2
face = compile(Leaky(), "d_rtrl", jnp.zeros(3)).functional()
params, state = face.init()
xs, ys = jax.random.normal(jax.random.key(1), (6, 4, 3)), jax.random.normal(jax.random.key(2), (6, 4, 4))

def total(params, xs, ys):
    def one(x, y):
        return face.fold(params, state, x, y, loss=lambda out, y: ((out - y) ** 2).sum(), reduction="sum")[0]
    return jax.tree.map(lambda g: g.sum(0), jax.vmap(one, in_axes=1)(xs, ys))

expected = total(params, xs, ys)
mesh = Mesh(np.array(jax.devices()), ("batch",))
split = jax.shard_map(
    lambda p, x, y: jax.lax.psum(total(p, x, y), "batch"), mesh=mesh,
    in_specs=(P(), P(None, "batch"), P(None, "batch")), out_specs=P(), check_vma=False,
)
got = jax.jit(split)(params, xs, ys)
for key in expected:
    np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, atol=1e-6)
half = jax.tree.map(np.asarray, total(params, xs[:, :2], ys[:, :2]))
assert all(np.abs(half[k] - np.asarray(expected[k])).max() > 1e-2 for k in expected)
place = lambda v: jax.device_put(v, jax.NamedSharding(mesh, P(None, "batch")))
auto = jax.jit(total)(params, place(xs), place(ys))
for key in expected:
    np.testing.assert_allclose(auto[key], expected[key], rtol=1e-5, atol=1e-6)
"""


def test_the_functional_face_on_two_devices(tmp_path):
    """Samples are split over a mesh, by `shard_map` and by sharded arguments of `jit`."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_loss_with_a_unit_is_told(learner, data, loss):
    def in_volts(x, y):
        return loss(learner(x), y) * u.mV

    with pytest.raises(LearnerTypeError, match="a quantity in mV"):
        learner.etrace_grad(*data, step_fn=in_volts)
    with pytest.raises(LearnerTypeError, match="a quantity in mV"):
        learner.etrace_grad(*data, step_fn=lambda x, y: learner(MultiStepData(x)).sum((1, 2)) * u.mV, chunk_size=3)
    learner.etrace_grad(*data, step_fn=lambda x, y: in_volts(x, y) / u.volt)  # a number, though not in plain units
