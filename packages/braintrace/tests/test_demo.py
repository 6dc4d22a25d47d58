"""The demo learns, says so, and draws it."""

import io

import numpy as np
import pytest

from braintrace import BPTT, D_RTRL
from braintrace._demo import run_demo
from braintrace._demo_training import DemoConfig, epochs, load_digits, make_learner, train

for module in ("matplotlib", "optax", "sklearn"):
    pytest.importorskip(module, reason="the extra `demo` is not installed")
Console = pytest.importorskip("rich.console", reason="the extra `demo` is not installed").Console

SMALL = DemoConfig(epochs=2, hidden=8, batch_size=128)


@pytest.fixture(scope="module")
def digits():
    return load_digits(seed=0)


def test_digits_are_sequences_of_rows(digits):
    assert digits.train_rows.shape == (8, 1347, 8)
    assert digits.test_rows.shape == (8, 450, 8)
    assert (digits.train_rows.min(), digits.train_rows.max()) == (0, 1)
    assert np.bincount(digits.test_labels).min() >= 40


def test_epochs_show_each_digit_once_in_a_new_order(digits):
    first, second = ([labels for _, labels in batches] for batches in epochs(digits, SMALL))
    assert {len(labels) for labels in first} == {SMALL.batch_size}
    assert len(first) == 1347 // SMALL.batch_size
    assert not np.array_equal(first[0], second[0])


@pytest.mark.parametrize("cell", ["gru", "lstm", "vanilla"])
def test_the_loss_falls(digits, cell):
    config = DemoConfig(epochs=4, hidden=8, cell=cell, batch_size=128, learning_rate=0.02)
    run = train("online", make_learner(config, D_RTRL), digits, config)
    assert run.losses[-5:].mean() < run.losses[:5].mean() - 0.1
    assert run.logits.shape == (8, 450, 10)
    assert run.accuracy == (run.logits[-1].argmax(-1) == digits.test_labels).mean()


def test_both_runs_start_from_the_same_weights(digits):
    online, bptt = (make_learner(SMALL, algorithm) for algorithm in (D_RTRL, BPTT))
    assert online.param_states.keys() == bptt.param_states.keys()
    first = [train("", learner, digits, SMALL).losses[0] for learner in (online, bptt)]
    assert first[0] == pytest.approx(first[1], rel=1e-6)


def test_the_demo_prints_and_draws(tmp_path):
    out = tmp_path / "new folder" / "demo.png"
    text = io.StringIO()
    config = DemoConfig(epochs=1, hidden=8, batch_size=256, out=out)
    runs = run_demo(config, Console(file=text, width=120))
    for shown in ("cell.Wz.weight", "accuracy", "per update", "online D-RTRL", "BPTT", "5/5", "demo.png"):
        assert shown in text.getvalue()
    assert [len(run.losses) for run in runs] == [5, 5]
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_online_learning_comes_within_two_points_of_bptt(tmp_path):
    online, bptt = run_demo(DemoConfig(out=tmp_path / "demo.png"), Console(file=io.StringIO()))
    assert online.accuracy > 0.9
    assert online.accuracy > bptt.accuracy - 0.02
