"""Handwritten digits in the latency code, by three recurrent spiking layers that learn online."""

import itertools

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import braintrace
import braintrace_nn as nn

T, HIDDEN, BATCH, EPOCHS = 12, 64, 50, 30
TRAINING, VALIDATION, UNSEEN = slice(0, 1200), slice(1200, 1500), slice(1500, 1750)
SYNAPSES = (2.0, 5.0)  # time constants in ms


class Network(brainstate.nn.Module):
    def __init__(self, tau_syn):
        super().__init__()
        sizes = (64, HIDDEN, HIDDEN, HIDDEN)
        self.layers = nn.Sequential(
            *(
                nn.LIFCell(i, o, tau=20.0 * u.ms, synapse=nn.Expon(tau_syn * u.ms), spk_fun=nn.arctan_spike)
                for i, o in itertools.pairwise(sizes)
            )
        )
        self.out = nn.LeakyRateReadout(HIDDEN, 10, tau=20.0 * u.ms)

    def update(self, x):
        return self.out(self.layers(x))


def latency_coded_digits():
    """Spikes (samples, T, 64), one per pixel, the earlier the brighter and none where it is dark; labels (samples,)."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    times = np.floor((1 - images / 16) * T)
    spikes = (times[:, None] == np.arange(T)[:, None]) & (images[:, None] > 0)
    order = np.random.default_rng(0).permutation(len(labels))
    return spikes[order].astype("float32"), labels[order]


def accuracies_after_training(algorithm, tau_syn, seed=1, **options):
    """Accuracy on the digits for validation, on unseen ones, and on those before training.

    The loss is the mean over all steps.
    """
    spikes, labels = latency_coded_digits()
    brainstate.random.seed(seed)
    learner = braintrace.compile(Network(tau_syn), algorithm, jnp.zeros((BATCH, 64)), batch_size=BATCH, **options)
    optimizer = optax.adam(3e-3)
    memory = optimizer.init({path: state.value for path, state in learner.param_states.items()})

    def loss(x, y):
        logits = learner(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @brainstate.transform.jit
    def train(memory, x, y):
        learner.reset_state()
        grads = learner.etrace_grad(x.swapaxes(0, 1), jnp.broadcast_to(y, (T, BATCH)), step_fn=loss)
        changes, memory = optimizer.update(grads, memory)
        for path, state in learner.param_states.items():
            state.value = optax.apply_updates(state.value, changes[path])
        return memory

    @brainstate.transform.jit
    def hits(x, y):
        learner.reset_state()
        logits = learner.etrace_evolve(x.swapaxes(0, 1), return_outputs=True)
        return (logits.sum(0).argmax(-1) == y).sum()

    def accuracy(part):
        parts = [slice(b, b + BATCH) for b in range(part.start, part.stop, BATCH)]
        return float(np.mean([hits(spikes[p], labels[p]) / BATCH for p in parts]))

    untrained, rng = accuracy(UNSEEN), np.random.default_rng(2)
    for _ in range(EPOCHS):
        for chosen in rng.permutation(TRAINING.stop).reshape(-1, BATCH):
            memory = train(memory, jnp.asarray(spikes[chosen]), jnp.asarray(labels[chosen]))
    return accuracy(VALIDATION), accuracy(UNSEEN), untrained


def best_of_validation(algorithm):
    """Accuracies with the time constant of the synapses that is best on the digits for validation."""
    found = {tau: accuracies_after_training(algorithm, tau) for tau in SYNAPSES}
    for tau, (valid, unseen, _) in found.items():
        print(f"{algorithm}, synapses of {tau} ms: validation {valid:.3f}, unseen {unseen:.3f}")
    return max(found.values(), key=lambda accuracies: accuracies[0])


@pytest.mark.slow
def test_three_spiking_layers_learn_digits_online():
    with brainstate.environ.context(dt=1.0 * u.ms):
        _, reference, untrained = best_of_validation("bptt")
        _, online, _ = best_of_validation("d_rtrl")
    assert reference > 0.85
    assert untrained < 0.4
    assert online > reference - 0.05


def test_every_pixel_spikes_once():
    spikes, labels = latency_coded_digits()
    assert spikes.shape == (len(labels), T, 64)
    assert set(np.unique(spikes.sum(1))) == {0.0, 1.0}
    assert spikes.mean((0, 2)).min() > 0
