"""One bit, shown first and asked for twenty steps later: windows shorter than the delay reach what BPTT reaches."""

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

import braintrace

DELAY, HIDDEN, BATCH, UPDATES = 20, 32, 64, 300


class Recall(brainstate.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.rnn = cell(2, HIDDEN)
        self.out = braintrace.nn.Linear(HIDDEN, 2)

    def update(self, x):
        return self.out(self.rnn(x))


def accuracy_after_training(cell, algorithm="d_rtrl", **options):
    """Accuracy on fresh trials after Adam(3e-3) on 300 batches; the loss is that of the last step."""
    brainstate.random.seed(0)
    model = Recall(cell)
    learner = braintrace.compile(model, algorithm, jnp.zeros((BATCH, 2)), batch_size=BATCH, **options)
    optimizer = optax.adam(3e-3)
    memory = optimizer.init({path: state.value for path, state in learner.param_states.items()})

    def trial(key):
        bit = jax.random.bernoulli(key, 0.5, (BATCH,)).astype(jnp.int32)
        shown = jnp.zeros((DELAY + 1, BATCH, 2)).at[0].set(jax.nn.one_hot(bit, 2))
        return shown, bit

    def loss(x, bit):
        logits = learner(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, bit).mean(), logits

    @brainstate.transform.jit
    def update(memory, key):
        shown, bit = trial(key)
        learner.reset_state()
        grads, logits = learner.etrace_grad(
            shown,
            jnp.broadcast_to(bit, (DELAY + 1, BATCH)),
            step_fn=loss,
            mask=jnp.zeros(DELAY + 1).at[-1].set(1.0),
            has_aux=True,
        )
        changes, memory = optimizer.update(grads, memory)
        for path, state in learner.param_states.items():
            state.value = optax.apply_updates(state.value, changes[path])
        return memory, (logits[-1].argmax(-1) == bit).mean()

    scores = []
    for key in jax.random.split(jax.random.key(1), UPDATES):
        memory, score = update(memory, key)
        scores.append(float(score))
    return sum(scores[-20:]) / 20


def temporaries(T, cell=braintrace.nn.GRUCell, algorithm="d_rtrl", **options):
    """Bytes of intermediate values that the compiled gradient of a trial of T steps needs."""
    learner = braintrace.compile(Recall(cell), algorithm, jnp.zeros((BATCH, 2)), batch_size=BATCH, **options)
    face = learner.functional()
    params, state = face.init()

    def gradient(params, state, xs, bits):
        return face.fold(
            params,
            state,
            xs,
            bits,
            loss=lambda out, bit: optax.softmax_cross_entropy_with_integer_labels(out, bit).mean(),
        )

    shapes = jnp.zeros((T, BATCH, 2)), jnp.zeros((T, BATCH), jnp.int32)
    compiled = jax.jit(gradient).lower(params, state, *shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_windows_need_the_same_memory_whatever_the_delay():
    short, long = (temporaries(T, vjp_method="multi-step", window=5) for T in (500, 5000))
    assert long == pytest.approx(short, rel=0.05)
    assert temporaries(200, algorithm="bptt") > 5 * temporaries(20, algorithm="bptt")


@pytest.mark.slow
@pytest.mark.parametrize("cell", [braintrace.nn.GRUCell, braintrace.nn.LSTMCell])
def test_windows_recall_what_bptt_recalls(cell):
    reference = accuracy_after_training(cell, "bptt")
    window = accuracy_after_training(cell, vjp_method="multi-step", window=5)
    strict = accuracy_after_training(cell)
    print(f"{cell.__name__}: BPTT {reference:.3f}, windows of 5 steps {window:.3f}, strict {strict:.3f}")
    assert reference >= 0.99
    assert window >= 0.99
