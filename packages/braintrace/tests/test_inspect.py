"""``inspect`` reports on any model and explains what it cannot find."""

import json
import sys

import pytest

import braintrace
from braintrace._inspect import inspect_model

MODELS = """
import brainstate
import braintrace


class Stacked(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = braintrace.nn.GRUCell(3, 4)
        self.out = braintrace.nn.Linear(4, 2)

    def update(self, x):
        return self.out(self.rnn(x))


def needs_size(size):
    return Stacked()


def broken():
    import a_package_that_is_nowhere


ready = Stacked()
no_model = dict
constant = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "inspected_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "inspected_models"
    sys.modules.pop("inspected_models", None)


@pytest.mark.parametrize("batch", [None, 2])
def test_text_names_the_weights_and_the_states(models, batch):
    shape = [3] if batch is None else [batch, 3]
    report = inspect_model(f"{models}:Stacked", shape, batch_size=batch)
    for found in ("rnn.Wz.weight", "rnn.Wr.weight", "rnn.Wh.weight", "out.weight", "rnn.h"):
        assert found in report
    assert ("etp_mv" if batch is None else "etp_mm") in report


def test_a_model_that_is_there_is_taken(models):
    assert inspect_model(f"{models}:ready", [3]) == inspect_model(f"{models}:Stacked", [3])


def test_json_is_data(models):
    report = json.loads(inspect_model(f"{models}:Stacked", [3], form="json"))
    assert [group["states"] for group in report["groups"]] == [["rnn.h"]]


def test_mermaid_is_a_flow_chart(models):
    assert inspect_model(f"{models}:Stacked", [3], form="mermaid").startswith("flowchart")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("inspected_models", "not of the form"),
        ("inspected_models:", "not of the form"),
        ("inspected_modles:Stacked", "no module `inspected_modles`"),
        ("inspected_models.deeper:Stacked", "no module `inspected_models.deeper`"),
        ("inspected_models:Staked", "one of Stacked, needs_size, broken, ready, no_model"),
        ("inspected_models:constant", "no function or class `constant`"),
        ("inspected_models:needs_size", "takes nothing"),
        ("inspected_models:no_model", "dict"),
    ],
)
def test_a_wrong_target_is_explained(models, target, message):
    with pytest.raises(braintrace.TargetError, match=message):
        inspect_model(target, [3])


def test_a_wrong_data_type_is_explained(models):
    with pytest.raises(braintrace.TargetError, match="float33"):
        inspect_model(f"{models}:Stacked", [3], dtype="float33")


def test_an_error_inside_the_factory_is_the_factorys_own(models):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_nowhere"):
        inspect_model(f"{models}:broken", [3])
