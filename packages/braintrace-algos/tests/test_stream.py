import jax
import numpy as np
import optax
import pytest

from braintrace_algos import D_RTRL, LearnerError, compile


@pytest.fixture
def learner(recurrent_model, data):
    return compile(recurrent_model, D_RTRL, data[0][0], batch_size=data[0].shape[1])


@pytest.fixture
def step(learner, loss):
    return lambda x, y: loss(learner(x), y)


@pytest.mark.parametrize("algorithm", ["d_rtrl", "uoro", "dni"])
def test_a_stream_learns_as_one_sequence_does(algorithm, recurrent_model, data, loss, distance):
    """So do the noise of UORO and the synthetic gradient of DNI, which go on from block to block."""
    options = {"window": 2} if algorithm == "dni" else {}
    learner = compile(recurrent_model, algorithm, data[0][0], batch_size=data[0].shape[1], **options)
    to_host = np.asarray if algorithm == "d_rtrl" else lambda v: v
    started = learner.etraces.value

    def step(x, y):
        return loss(learner(x), y)

    initial = {path: s.value for path, s in learner.param_states.items()}
    optimizer = optax.adam(1e-2)
    whole = learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=2)
    expected = {path: s.value for path, s in learner.param_states.items()}
    learner.reset_state()
    learner.etraces.value = started
    learner.init_optimizer(optimizer)
    for path, value in initial.items():
        learner.param_states[path].value = value

    stream = ((to_host(x), to_host(y)) for x, y in zip(*data, strict=True))
    parts = list(learner.etrace_stream(stream, step_fn=step, optimizer=optimizer, update_every=2, block=4))
    assert [len(p.losses) for p in parts] == [4, 3]
    np.testing.assert_allclose(np.concatenate([p.losses for p in parts]), whole.losses, rtol=1e-5)
    assert distance({path: s.value for path, s in learner.param_states.items()}, expected) < 1e-5


def test_a_stream_is_read_a_block_at_a_time(learner, data):
    read = []

    def endless():
        while True:
            read.append(None)
            yield data[0][0]

    stream = learner.etrace_stream(endless(), step_fn=lambda x: learner(x).sum(), optimizer=optax.sgd(0.0), block=3)
    assert not read
    next(stream)
    assert len(read) == 3
    next(stream)
    assert len(read) == 6


def test_blocks_hold_whole_updates(learner, step, data):
    with pytest.raises(LearnerError, match="multiple of update_every"):
        learner.etrace_stream(zip(*data, strict=True), step_fn=step, optimizer=optax.sgd(0.1), update_every=2, block=3)
    parts = list(learner.etrace_stream([], step_fn=step, optimizer=optax.sgd(0.1)))
    assert parts == []
    assert not jax.tree.leaves(learner.optimizer_states)
