"""Adapting spiking neurons learn to remember, online: evidence accumulation and delayed match to sample."""

import itertools

import jax
import numpy as np
import pytest

from benchmarks.learning import SETTINGS, train
from benchmarks.tasks import CHANNEL, SIZES


def accuracies(task, algorithm, updates):
    return [
        now.accuracy
        for now in itertools.islice(train(SIZES[task]["small"], SETTINGS[task]["small"], algorithm), updates)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "algorithm", "least"),
    [
        ("evidence", "e-prop", 0.88),
        ("evidence", "e-prop, random feedback", 0.8),
        ("match", "e-prop", 0.93),
        ("match", "e-prop, random feedback", 0.9),
    ],
)
def test_adapting_neurons_learn_online(task, algorithm, least):
    found = accuracies(task, algorithm, 300)
    print(f"{task}, {algorithm}: {np.mean(found[:5]):.3f} -> {np.mean(found[-40:]):.3f}")
    assert np.mean(found[:5]) < 0.7
    assert np.mean(found[-40:]) > least


@pytest.mark.parametrize("size", ["small", "full"])
def test_evidence(size):
    task = SIZES["evidence"][size]
    trials = task.draw(jax.random.key(0), 16)
    spikes, weight = np.asarray(trials.spikes), np.asarray(trials.weight)
    assert spikes.shape == (task.steps, 16, 4 * CHANNEL)
    np.testing.assert_allclose(weight.sum(0), 1.0, rtol=1e-5)
    assert len(set((weight > 0).argmax(0))) > 1
    cues = (
        spikes[: task.cues * (task.cue + task.gap)].reshape(task.cues, -1, 16, 4, CHANNEL)[:, : task.cue].mean((1, 4))
    )
    right = (cues[..., 1] > cues[..., 0]).sum(0) > task.cues / 2
    np.testing.assert_array_equal(right, trials.label)
    silent = spikes[:, :, : 3 * CHANNEL].sum(2)[task.cues * (task.cue + task.gap) :]
    assert silent[: task.delay[0]].sum() == 0
    assert spikes[..., 3 * CHANNEL :].mean() == pytest.approx(task.rate / 4, rel=0.1)


@pytest.mark.parametrize("size", ["small", "full"])
def test_match(size):
    task = SIZES["match"][size]
    trials = task.draw(jax.random.key(0), 16)
    spikes, weight = np.asarray(trials.spikes), np.asarray(trials.weight)
    np.testing.assert_allclose(weight.sum(0), 1.0, rtol=1e-5)
    by_channel = spikes.reshape(task.steps, 16, 4, CHANNEL).sum(3)
    first = by_channel[: task.sample].sum(0)[:, :2].argmax(1)
    second = by_channel[task.sample :].sum(0)[:, :2].argmax(1)
    np.testing.assert_array_equal(first == second, trials.label)
    assert 0 < trials.label.sum() < 16
