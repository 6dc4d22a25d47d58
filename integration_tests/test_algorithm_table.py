"""Every algorithm on every kind of cell, against backpropagation through time.

Exact ones must be exact. Approximations are held from both sides: a gradient that points elsewhere is wrong, and one
that suddenly equals that of backpropagation is not the algorithm it says it is.
"""

import csv
import functools
import pathlib

import pytest
from algorithm_table import ALGORITHMS, CELLS, MEAN, ONE_DRAW, agreements, rows

RECORD = pathlib.Path(__file__).parents[1] / "docs" / "recorded" / "algorithm_table.csv"
QUICK = ("vanilla", "LRU", "ALIF")
each_cell = pytest.mark.parametrize(
    "cell", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CELLS]
)
measured = functools.cache(agreements)

EXACT = {"rtrl", "d_rtrl, window T"}
"""The full influence matrix; a window that spans the sequence."""

EXACT_WITHOUT_MIXING = {
    "d_rtrl",
    "d_rtrl, window 1",
    "d_rtrl, window 4",
    "eprop",
    "eprop, filtered",  # the filter acts on recurrent relations, and there are none
    "ostl_recurrent",
    "snap",
}
"""What these leave out is credit that crosses a recurrent matrix, which the LRU does not have."""

# Largest relative error and smallest cosine. An error below one says that a step along the gradient is nearer to that
# of backpropagation than no step at all.
BANDS = {
    "d_rtrl": (1.0, 0.6),
    "d_rtrl, window 1": (0.6, 0.8),
    "d_rtrl, window 4": (0.4, 0.9),
    "eprop": (1.0, 0.6),
    "eprop, filtered": (2.0, 0.5),  # the model has no leaky readout for the filter to stand for
    "ostl_recurrent": (1.0, 0.6),
    "ostl_feedforward": (1.0, 0.4),
    "pp_prop": (1.0, 0.5),
    "ottt": (1.3, 0.4),
    "snap": (0.5, 0.85),
    "dni": (3.0, 0.4),
    "tbptt": (0.6, 0.8),
}
SMALLEST_ERROR = 0.01


def exact_on(cell):
    return EXACT | EXACT_WITHOUT_MIXING if cell == "LRU" else EXACT


@each_cell
def test_exact_algorithms_are_exact(cell):
    for algorithm in exact_on(cell):
        assert measured(cell)[algorithm].error < 1e-12, algorithm


@each_cell
def test_approximations_stay_approximations_that_point_the_right_way(cell):
    for algorithm, (largest, cosine) in BANDS.items():
        if algorithm not in exact_on(cell):
            found = measured(cell)[algorithm]
            assert SMALLEST_ERROR < found.error < largest, algorithm
            assert found.cosine > cosine, algorithm


@each_cell
def test_what_is_kept_pays(cell):
    """More credit inside of the window, the past at its entry, the unit's influence on itself: each comes closer."""
    found = measured(cell)
    if cell != "LRU":
        assert found["d_rtrl, window 1"].error < 0.8 * found["d_rtrl"].error
        assert found["d_rtrl, window 4"].error < 0.7 * found["d_rtrl, window 1"].error
        assert found["snap"].error < 0.8 * found["d_rtrl"].error
    assert found["d_rtrl, window 4"].error < 0.8 * found["tbptt"].error


@each_cell
def test_signals_that_are_not_the_loss_s_own_point_elsewhere(cell):
    """Random feedback has not been aligned with by learning; a constant modulator knows nothing of the loss."""
    found = measured(cell)
    for algorithm in ("eprop, random feedback", "three_factor"):
        assert found[algorithm].error > 0.5, algorithm
        assert found[algorithm].cosine < 0.8, algorithm


@each_cell
def test_uoro_is_noise_around_the_exact_gradient(cell):
    found = measured(cell)
    assert found[ONE_DRAW].error > 0.2
    assert 0.4 * found[MEAN].noise < found[MEAN].error < 2.0 * found[MEAN].noise


def test_without_memory_there_is_no_trace():
    """The state of a vanilla network reaches its next one through the recurrent matrix alone: D = 0."""
    found = measured("vanilla")
    assert found["d_rtrl"].error == pytest.approx(found["eprop"].error, rel=1e-9)
    assert found["d_rtrl"].error == pytest.approx(found["ostl_feedforward"].error, rel=1e-9)
    assert found["ostl_recurrent"].error < 0.9 * found["d_rtrl"].error


@each_cell
def test_the_documented_table_is_the_measured_one(cell):
    with RECORD.open(newline="") as file:
        header, *body = csv.reader(file)
    column = header.index(cell)
    recorded = {row[0]: row[column].split(" / ") for row in body}
    assert list(recorded) == list(ALGORITHMS)
    for algorithm, found in measured(cell).items():
        expected = [pytest.approx(float(text), rel=0.01, abs=2e-3) for text in recorded[algorithm]]
        assert [found.error, found.cosine] == expected, algorithm


def test_the_table_has_a_row_for_each_algorithm():
    assert [row[0] for row in rows({})] == ["algorithm", *ALGORITHMS]
