import copy
import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

from braintrace_algos import BPTT, D_RTRL, CheckpointError, LearnerError, LearnerTypeError, compile
from braintrace_primitives import matmul

RUN = '''
import brainstate, jax, jax.numpy as jnp, optax
from braintrace_algos import compile
from braintrace_primitives import matmul


class Noisy(brainstate.nn.Module):
    """Random initial state and noise at every step."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(brainstate.random.randn(2, 3))
        self.gain = brainstate.ParamState(jnp.ones(3, jnp.bfloat16))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(brainstate.random.randn(batch_size, 3))

    def update(self, x):
        noise = 0.1 * brainstate.random.randn(*self.h.value.shape)
        self.h.value = 0.5 * self.h.value + matmul(x, self.w.value) + noise
        return self.h.value * self.gain.value.astype(jnp.float32)


def build(seed):
    learner = compile(Noisy(), "d_rtrl", jnp.zeros((4, 2)), batch_size=4, seed=seed)
    optimizer = optax.adam(1e-2)
    learner.init_optimizer(optimizer)
    return learner, optimizer


def train(learner, optimizer, part):
    xs = jax.random.normal(jax.random.key(part), (6, 4, 2))
    history = learner.etrace_train(xs, step_fn=lambda x: (learner(x) ** 2).mean(), optimizer=optimizer, update_every=2)
    learner.reset_state() if part == 0 else None
    return history.losses
'''

RESUME = """
learner, optimizer = build(seed=99)
learner.restore({middle!r})
train(learner, optimizer, 1)
learner.save({end!r})
"""

KILLED = """
import itertools
learner, optimizer = build(seed=1)
learner.save({start!r})
for part in itertools.count():
    train(learner, optimizer, part)
    learner.save({file!r})
"""

FINISH = """
learner, optimizer = build(seed=99)
learner.restore({file!r})
done = int(learner.optimizer_states[0].value[0].count) // 3
print(done)
for part in range(done, done + 2):
    train(learner, optimizer, part)
learner.save({end!r})
"""


def entries(path):
    with np.load(path) as archive:
        manifest = json.loads(archive["manifest"].tobytes())
        return {name: archive[f"array_{i}"] for i, name in enumerate(manifest["entries"])}


def test_a_run_resumed_in_a_new_process_is_bit_equal(tmp_path):
    script, middle, end = tmp_path / "run.py", tmp_path / "middle.npz", tmp_path / "end.npz"
    script.write_text(RUN)
    run = runpy.run_path(str(script))
    learner, optimizer = run["build"](seed=1)
    run["train"](learner, optimizer, 0)
    learner.save(middle)
    run["train"](learner, optimizer, 1)
    learner.save(tmp_path / "expected.npz")

    script.write_text(RUN + RESUME.format(middle=str(middle), end=str(end)))
    subprocess.run([sys.executable, str(script)], check=True, env=os.environ, timeout=500)
    expected, resumed, before = entries(tmp_path / "expected.npz"), entries(end), entries(middle)
    assert list(resumed) == list(expected)
    for name, value in expected.items():
        assert resumed[name].dtype == value.dtype, name
        assert resumed[name].tobytes() == value.tobytes(), name
    for name in ("model.w", "model.gain", "model.h", "random", "learner.running_index", "optimizer.0[0].count"):
        assert any(not np.array_equal(expected[n], before[n]) for n in expected if n.startswith(name)), name


def test_a_run_killed_at_any_moment_goes_on_from_its_last_checkpoint(tmp_path):
    """The process is killed without warning while it trains and saves without pause."""
    start, file, end = (tmp_path / f"{name}.npz" for name in ("start", "run", "end"))
    script = tmp_path / "run.py"
    script.write_text(RUN + KILLED.format(start=str(start), file=str(file)))
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ)
    patience = time.monotonic() + 300
    while not file.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    script.write_text(RUN + FINISH.format(file=str(file), end=str(end)))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, check=True, env=os.environ, timeout=500, capture_output=True, text=True)
    finished = int(done.stdout)
    assert finished >= 1

    script.write_text(RUN)
    run = runpy.run_path(str(script))
    learner, optimizer = run["build"](seed=2)
    learner.restore(start)
    for part in range(finished + 2):
        run["train"](learner, optimizer, part)
    learner.save(tmp_path / "expected.npz")
    expected, resumed = entries(tmp_path / "expected.npz"), entries(end)
    assert list(resumed) == list(expected)
    for name, value in expected.items():
        assert resumed[name].tobytes() == value.tobytes(), name


@pytest.fixture
def saved(recurrent_model, data, loss, tmp_path):
    learner = compile(recurrent_model, D_RTRL, data[0][0], batch_size=data[0].shape[1])
    optimizer = optax.adam(1e-2)
    learner.etrace_train(*data, step_fn=lambda x, y: loss(learner(x), y), optimizer=optimizer)
    learner.save(tmp_path / "run.npz")
    return learner, tmp_path / "run.npz"


def values(learner):
    return jax.tree.leaves([s.value for s in learner._saved_states().values()])


def refuse(learner, path, *words):
    before = values(learner)
    with pytest.raises(CheckpointError) as error:
        learner.restore(path)
    for word in words:
        assert word in str(error.value)
    for now, then in zip(values(learner), before, strict=True):
        assert now is then


def test_restoring_brings_everything_back(saved, data, loss):
    learner, path = saved
    before = values(learner)
    learner.reset_state()
    learner.etrace_train(*data, step_fn=lambda x, y: loss(learner(x), y), optimizer=optax.adam(1.0))
    learner.restore(path)
    for now, then in zip(values(learner), before, strict=True):
        assert now.dtype == then.dtype
        assert bool(jnp.all(now == then))


def test_checkpoints_of_other_learners_are_refused(saved, model, recurrent_model, data):
    _, path = saved
    x, B = data[0][0], data[0].shape[1]
    other = compile(model, D_RTRL, x, batch_size=B)
    other.init_optimizer(optax.adam(1e-2))
    refuse(other, path, "model.w['weight']", "float32[9,5]", "float32[4,5]", "compile the model of")
    refuse(compile(recurrent_model, D_RTRL, x, batch_size=B), path, "init_optimizer", "optimizer.0")
    bptt = compile(recurrent_model, BPTT, x, batch_size=B)
    bptt.init_optimizer(optax.adam(1e-2))
    refuse(bptt, path, "learner.etraces['", "checkpoint only", "D_RTRL")
    smaller = compile(recurrent_model, D_RTRL, x[:2], batch_size=2)
    refuse(smaller, path, "model.g: float32[3,5], learner float32[2,5]")


@pytest.mark.parametrize(
    ("saved_by", "restored_by"),
    [
        (("d_rtrl", {}), ("ostl_recurrent", {})),
        (("ostl_recurrent", {}), ("eprop", {})),
        (("pp_prop", {"decay_or_rank": 0.9}), ("pp_prop", {"decay_or_rank": 0.8})),
        (("eprop", {"kappa_filter_decay": 0.9}), ("eprop", {"kappa_filter_decay": 0.8})),
        (("pp_prop", {"decay_or_rank": (0.9, 0.0)}), ("ottt", {"decay": 0.8})),
    ],
)
def test_traces_of_another_rule_or_decay_are_refused_where_their_shapes_are_the_same(
    saved_by, restored_by, recurrent_model, data, tmp_path
):
    x, B, path = data[0][0], data[0].shape[1], tmp_path / "run.npz"
    (name, options), (other, others) = saved_by, restored_by
    learner = compile(recurrent_model, name, x, batch_size=B, **options)
    learner.save(path)
    learner.restore(path)
    refuse(compile(recurrent_model, other, x, batch_size=B, **others), path, "traces: ", "its options")


@pytest.mark.parametrize("storage", ["npz", "orbax"])
def test_what_was_learnt_goes_into_another_learner(storage, saved, recurrent_model, data, loss, tmp_path):
    """Another algorithm, batch size and optimiser, in the middle of a sequence of its own."""
    if storage == "orbax":
        pytest.importorskip("orbax.checkpoint")
    trained, _ = saved
    trained.save(tmp_path / "trained", storage=storage)
    learnt = {path: jax.tree.map(np.asarray, state.value) for path, state in trained.param_states.items()}

    xs, ys = (v[:, :2] for v in data)
    other = compile(type(recurrent_model)(recurrent=True), "pp_prop", xs[0], batch_size=2, decay_or_rank=0.8)
    other.etrace_train(xs, ys, step_fn=lambda x, y: loss(other(x), y), optimizer=optax.sgd(0.1))
    refuse(other, tmp_path / "trained", "parameters_only=True")
    kept = {n: s.value for n, s in other._saved_states().items() if not isinstance(s, brainstate.ParamState)}
    other.restore(tmp_path / "trained", parameters_only=True)
    for path, value in learnt.items():
        jax.tree.map(np.testing.assert_array_equal, other.param_states[path].value, value)
    for name, state in other._saved_states().items():
        assert name not in kept or state.value is kept[name], name


def test_parameters_of_another_model_are_refused(saved, model, data):
    _, path = saved
    other = compile(model, "pp_prop", data[0][0], batch_size=data[0].shape[1], decay_or_rank=0.8)
    before = values(other)
    with pytest.raises(CheckpointError) as error:
        other.restore(path, parameters_only=True)
    assert "compile the model of the saved run" in str(error.value)
    assert "model.w['weight']: float32[9,5], learner float32[4,5]" in str(error.value)
    for now, then in zip(values(other), before, strict=True):
        assert now is then


def test_a_plain_run_does_not_take_an_optimiser_s_checkpoint(saved, data):
    learner, path = saved
    learner.init_optimizer(optax.sgd(0.1))
    refuse(learner, path, "optimizer.0[0].mu", "checkpoint only")


def test_other_formats_and_damaged_files_are_refused(saved, tmp_path):
    learner, path = saved
    with np.load(path) as archive:
        arrays = dict(archive)
    manifest = json.loads(arrays["manifest"].tobytes()) | {"format": 999, "version": "9.9"}
    newer = tmp_path / "newer.npz"
    np.savez(newer, **(arrays | {"manifest": np.frombuffer(json.dumps(manifest).encode(), np.uint8)}))
    refuse(learner, newer, "format 999", "version 9.9")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(path.read_bytes()[:-200])
    refuse(learner, damaged, "damaged")
    np.savez(tmp_path / "foreign.npz", a=np.ones(2))
    refuse(learner, tmp_path / "foreign.npz", "not a checkpoint")
    np.save(tmp_path / "pickle.npy", np.array([object()]), allow_pickle=True)
    refuse(learner, tmp_path / "pickle.npy", "not a checkpoint")
    with pytest.raises(FileNotFoundError):
        learner.restore(tmp_path / "missing.npz")


@pytest.mark.parametrize("take", [pickle.dumps, lambda learner: pickle.dumps({"learner": learner})])
def test_a_learner_is_not_pickled(saved, take):
    with pytest.raises(LearnerTypeError, match=r"pickled(?s:.*)save\(path\).*deepcopy"):
        take(saved[0])
    assert copy.deepcopy({"learner": saved[0]})["learner"] is not saved[0]


def test_a_failed_write_leaves_the_last_checkpoint(saved, monkeypatch):
    learner, path = saved
    content = path.read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        learner.save(path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_units_are_part_of_an_entry(tmp_path):
    class Voltage(brainstate.nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit = unit
            self.w = brainstate.ParamState(jnp.ones((2, 3)))

        def init_state(self, batch_size=None):
            self.v = brainstate.HiddenState(jnp.zeros(3) * self.unit)

        def update(self, x):
            self.v.value = 0.5 * self.v.value + matmul(x, self.w.value) * self.unit
            return self.v.value / self.unit

    learner = compile(Voltage(u.mV), D_RTRL, jnp.zeros(2))
    learner(jnp.ones(2))
    learner.save(tmp_path / "run.npz")
    again = compile(Voltage(u.mV), D_RTRL, jnp.zeros(2))
    again.restore(tmp_path / "run.npz")
    assert again.model.v.value[0] == 2 * u.mV
    refuse(compile(Voltage(u.mA), D_RTRL, jnp.zeros(2)), tmp_path / "run.npz", "model.v: float32[3] mV", "mA")


def test_orbax_keeps_the_same(saved, data, loss, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    learner, _ = saved
    folder = tmp_path / "run"
    learner.save(folder, storage="orbax")
    before = values(learner)
    learner.etrace_train(*data, step_fn=lambda x, y: loss(learner(x), y), optimizer=optax.adam(1.0))
    learner.restore(folder)
    for now, then in zip(values(learner), before, strict=True):
        assert now.dtype == then.dtype
        assert bool(jnp.all(now == then))
    with pytest.raises(CheckpointError, match="folder of its own"):
        learner.save(folder, storage="orbax")
    learner.init_optimizer(optax.sgd(0.1))
    refuse(learner, folder, "optimizer.0[0].mu", "init_optimizer")
    (tmp_path / "empty").mkdir()
    refuse(learner, tmp_path / "empty", "not a checkpoint")


def test_orbax_is_optional(saved, tmp_path, monkeypatch):
    learner, _ = saved
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(CheckpointError, match=r"braintrace-algos\[checkpoint\]"):
        learner.save(tmp_path / "run", storage="orbax")
    with pytest.raises(LearnerError, match="storage"):
        learner.save(tmp_path / "run", storage="pickle")
