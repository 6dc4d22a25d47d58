import jax.numpy as jnp
import pytest

from braintrace_algos import D_RTRL, ETraceVmap, LearnerError, compile


def test_a_learner_mapped_afterwards_is_as_one_compiled_so(recurrent_model, data, loss, distance):
    xs, ys = data
    batched = compile(recurrent_model, D_RTRL, xs[0], batch_size=xs.shape[1])
    expected = batched.etrace_grad(xs, ys, step_fn=lambda x, y: loss(batched(x), y))
    single = compile(recurrent_model, "pp_prop", xs[0, 0], decay_or_rank=0.9)
    single(xs[0, 0])
    mapped = ETraceVmap(single, xs.shape[1])
    assert type(mapped) is type(single)
    single = compile(recurrent_model, D_RTRL, xs[0, 0])
    single(xs[0, 0])
    mapped = ETraceVmap(single, xs.shape[1])
    for _ in range(2):
        grads = mapped.etrace_grad(xs, ys, step_fn=lambda x, y: loss(mapped(x), y))
        assert distance(grads, expected) < 1e-5
        mapped.reset_state()
        assert int(mapped.running_index.value) == 0


def test_what_is_mapped(model, data):
    xs, _ = data
    batched = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    assert not isinstance(batched, ETraceVmap)
    with pytest.raises(LearnerError, match="batch already"):
        ETraceVmap(batched, 3)
    assert isinstance(compile(model, D_RTRL, xs[0], batch_size=xs.shape[1], vmap=True), ETraceVmap)
    assert not isinstance(jnp.zeros(1), ETraceVmap)
