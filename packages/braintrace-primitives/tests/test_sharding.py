"""Operations and trace rules on a mesh of four devices; a process of its own, for the device count is set at start."""

import os
import subprocess
import sys
import textwrap

import pytest

SETUP = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
import braintrace_primitives as bp
from braintrace_primitives.testing import draw

jax.config.update("jax_num_cpu_devices", 4)
draw = lambda *shape, draw=draw: draw(shape, jnp.float32)
pattern = bp.SparsityPattern.from_dense(np.ones((3, 4)))
x, w, bias = draw(8, 3), draw(3, 4), draw(4)
layout = ("NWC", "WIO", "NWC")
own = bp.register_primitive("mesh_own", lambda x, gain: x * gain)
operations = {
    "elementwise": (lambda x, w: x * bp.element_wise(w), x, (draw(3),)),
    "own": (jax.vmap(own, (0, None)), x, (draw(3),)),
    "matmul": (bp.matmul, x, (w, bias)),
    "grouped": (bp.grouped_matmul, draw(8, 2, 3), (draw(2, 3, 4), draw(2, 4))),
    "einsum": (lambda x, w: bp.einsum("bi,io->bo", x, w), x, (w,)),
    "lora": (lambda x, b, a: bp.lora_matmul(x, b, a), x, (draw(3, 2), draw(2, 4))),
    "embedding": (bp.embedding, jnp.arange(8) % 3, (w,)),
    "sparse": (lambda x, d, b: bp.sparse_matmul(x, d, sparse_mat=pattern, bias=b), x, (draw(12), bias)),
    "conv": (lambda x, k, b: bp.conv(x, k, b, dimension_numbers=layout), draw(8, 5, 3), (draw(2, 3, 4), bias)),
}

def mesh(kind):
    return jax.set_mesh(jax.make_mesh((4,), ("batch",), axis_types=(kind,)))

def close(name, got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-4, err_msg=name)

def both(operation, count):
    def run(x, *weights):
        loss = lambda *weights: jnp.sum(operation(x, *weights) ** 2)
        return operation(x, *weights), jax.grad(loss, tuple(range(count)))(*weights)
    return run
"""

SHARDED_JIT = """
for name, (operation, x, weights) in operations.items():
    run = both(operation, len(weights))
    want = run(x, *weights)
    for kind in (AxisType.Auto, AxisType.Explicit):
        with mesh(kind):
            y, grads = jax.jit(run)(jax.device_put(x, P("batch")), *(jax.device_put(w, P()) for w in weights))
            close(f"{name} {kind}", (y, grads), want)
            assert y.sharding.spec[0] == "batch", (name, kind, y.sharding)
            if kind is AxisType.Explicit:
                assert jax.typeof(y).sharding.spec == P("batch", *(None,) * (y.ndim - 1)), (name, jax.typeof(y))
with mesh(AxisType.Explicit):
    columns = jax.device_put(w, P(None, "batch"))
    assert jax.typeof(bp.matmul(draw(2, 3), columns)).sharding.spec == P(None, "batch")
    inner = jax.device_put(draw(2, 4, 3), P(None, "batch"))
    assert jax.typeof(bp.matmul(inner, jax.device_put(w, P()))).sharding.spec == P(None, "batch", None)
"""

SHARD_MAP = """
with mesh(AxisType.Auto):
    for name, (operation, x, weights) in operations.items():
        run = both(operation, len(weights))
        specs = P("batch"), *(P(),) * len(weights)
        mapped = jax.shard_map(run, in_specs=specs, out_specs=(P("batch"), P()))
        close(name, jax.jit(mapped)(x, *weights), run(x, *weights))
"""

RULES = """
for name, (operation, x, weights) in operations.items():
    eqn = next(e for e in jax.make_jaxpr(operation)(x, *weights).eqns if bp.is_etp_primitive(e.primitive))
    spec, params = bp.get_primitive_spec(eqn.primitive), eqn.params
    if spec.x_invar_index is None:
        continue  # its trace has the shape of the weight, which is the same everywhere
    shapes = [v.aval.shape for v in eqn.invars]
    weights = {k: draw(*shapes[i]) for k, i in spec.trainable_invars(params).items()}
    y = eqn.outvars[0].aval.shape
    xs, factors, blocks = jnp.stack([x, x]), draw(2, 2, *y), draw(2, 2, *y)
    def run(xs, factors, blocks, weights, rule=spec.trace_rule, params=params):
        trace = rule.decay(rule.accumulate(xs, factors, weights, params), blocks, params)
        return rule.pullback(xs, weights, factors[:, 0], params), rule.contract(trace, factors[0], weights, params)
    want = run(xs, factors, blocks, weights)
    specs = P(None, "batch"), P(None, None, "batch"), P(None, None, "batch"), P()
    with mesh(AxisType.Auto):
        placed = [jax.device_put(a, s) for a, s in zip((xs, factors, blocks, weights), specs)]
        close(f"{name} jit", jax.jit(run)(*placed), want)
        mapped = jax.shard_map(run, in_specs=specs, out_specs=P())
        close(f"{name} shard_map", jax.jit(mapped)(xs, factors, blocks, weights), want)
    with mesh(AxisType.Explicit):
        placed = [jax.device_put(a, s) for a, s in zip((xs, factors, blocks, weights), specs)]
        close(f"{name} explicit", jax.jit(run)(*placed), want)
        trace = jax.eval_shape(lambda *a: spec.trace_rule.accumulate(*a, params), placed[0], placed[1], placed[3])
        for leaf in jax.tree.leaves(trace):
            assert name == "own" or leaf.sharding.spec[1] == "batch", (name, leaf)
"""

ELEMENTWISE = """
rule, w = bp.get_primitive_spec(bp.etp_elemwise_p).trace_rule, {"weight": draw(3)}
broadcast = rule.expanded(jnp.tile(jnp.arange(3), (2, 1)))
for rule, shape in (rule, (3,)), (broadcast, (2, 3)):
    factors, signal = draw(4, 2, 2, *shape), draw(4, 2, *shape)
    want = sum(rule.contract(rule.accumulate(None, f, w, {}), s, w, {})["weight"] for f, s in zip(factors, signal))
    run = lambda f, s: rule.contract(rule.accumulate(None, f[0], w, {}), s[0], w, {})["weight"]
    with mesh(AxisType.Auto):
        close("elementwise", jax.jit(jax.shard_map(run, in_specs=P("batch"), out_specs=P()))(factors, signal), want)
"""


@pytest.mark.parametrize(
    "script",
    [SHARDED_JIT, SHARD_MAP, RULES, ELEMENTWISE],
    ids=["sharded jit", "shard_map", "trace rules", "elementwise"],
)
def test_four_devices(script):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SETUP + script)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_the_package_imports_jax_and_nothing_above_it():
    code = "import sys, braintrace_primitives; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {"jax", "braintrace_primitives"} <= loaded
    assert not loaded & {"brainstate", "saiunit", "brainunit", "brainevent", "braintrace_compiler"}, loaded
