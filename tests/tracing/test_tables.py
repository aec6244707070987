"""Rows converted to grids, averages (within each prompt first), and peaks, with hand-made effects."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from interpret.errors import InputError
from interpret.facts.grids import bucket_averages, bucket_peaks, by_part
from interpret.records import TraceCell, csv_header, from_csv, to_csv
from interpret.tracing.tables import estimated, total_average, trace_averages, trace_grids, trace_peaks
from reference.trace_rows import cells


def effects_with_peak(token, layer, height=0.5, shape=(5, 4)):
    effects = np.linspace(-0.1, 0.1, math.prod(shape)).reshape(shape)
    effects[token, layer] = height
    return effects.tolist()


def test_rows_in_any_order_become_the_grid_they_came_from():
    effects = np.array(effects_with_peak(2, 1))
    rows = cells(effects.tolist())
    (grid,) = trace_grids(sorted(rows, key=lambda row: row.indirect_effect))
    np.testing.assert_array_equal(grid.effects, effects)
    np.testing.assert_array_equal(grid.scores, 0.1 + effects)
    np.testing.assert_array_equal(grid.spread, np.full((5, 4), 0.25))
    assert grid.tokens == (" t0", " t1", " t2", " t3", " t4")
    assert (grid.subject_span, grid.clean, grid.corrupted, grid.exact.all()) == ((1, 3), 0.7, 0.1, True)


def test_a_single_sample_has_no_spread_also_through_the_table():
    rows = cells(effects_with_peak(2, 1), std=None)
    table = csv_header(TraceCell) + to_csv(rows)
    assert from_csv(TraceCell, table) == rows
    assert np.isnan(trace_grids(from_csv(TraceCell, table))[0].spread).all()


def test_estimated_cells_are_not_marked_exact():
    rows = cells(effects_with_peak(2, 1))
    rows[3] = replace(rows[3], method="approximate")
    (grid,) = trace_grids(rows)
    assert grid.exact.sum() == 19
    assert not grid.exact[0, 3]


def test_missing_or_repeated_rows_are_refused():
    rows = cells(effects_with_peak(2, 1))
    message = (
        "the grid of 'known_1' by 'hidden', 'probability': expected 5 x 4 rows, one per token and layer; found 19, "
        "with missing"
    )
    with pytest.raises(InputError, match=message):
        trace_grids(rows[:6] + rows[7:])
    with pytest.raises(InputError, match="found 21, with missing or repeated cells"):
        trace_grids([*rows, rows[3]])
    with pytest.raises(
        InputError, match="no rows: no fact is finished yet, or all were dropped, see 'dropped' in manifest.json"
    ):
        trace_grids([])
    with pytest.raises(InputError, match="'known_1' by 'hidden', 'probability': no row has in_subject set"):
        trace_grids(cells(effects_with_peak(2, 1), span=(9, 10)))


def test_the_average_is_over_prompts_not_over_tokens():
    # The tokens of bucket "further": three of effect 0.3 in the long prompt, one of 0.9 in the short one.
    long = [[0.0], [0.0], [0.0], [0.3], [0.3], [0.3], [0.0]]
    short = [[0.0], [0.0], [0.0], [0.9], [0.0]]
    rows = cells(long, name="a", span=(0, 2)) + cells(short, name="b", span=(0, 2))
    averages = bucket_averages(trace_grids(rows))
    further = 4
    assert averages.mean[further, 0] == pytest.approx((0.3 + 0.9) / 2)
    assert averages.n[further, 0] == 2
    assert total_average(trace_grids(rows)).mean == pytest.approx(0.6)


def test_the_table_of_averages_is_each_prompts_mean_first():
    grids = trace_grids(
        row
        for name, shift in (("a", 0.0), ("b", 0.2))
        for mediator in ("hidden", "mlp_severed")
        for row in cells(
            [[0.1 * token + 0.01 * layer + shift for layer in range(2)] for token in range(6)],
            name=name,
            mediator=mediator,
        )
    )
    rows = trace_averages(grids)
    assert len(rows) == 2 * 5 * 2, "a subject of two tokens has no middle"
    assert {row.bucket for row in rows} == {"first_subject", "last_subject", "first_subsequent", "further", "last"}
    assert {row.n for row in rows} == {2}
    (further,) = [row for row in rows if (row.mediator, row.bucket, row.layer_idx) == ("hidden", "further", 1)]
    assert further.average_indirect_effect == pytest.approx(0.4 + 0.01 + 0.1)
    assert further.low <= further.average_indirect_effect <= further.high


def test_the_table_of_averages_counts_the_prompts_that_have_a_bucket():
    effects = effects_with_peak(2, 1, shape=(6, 4))
    rows = cells(effects, name="a", span=(0, 3)) + cells(effects, name="b", span=(0, 2))
    counts = {row.bucket: row.n for row in trace_averages(trace_grids(rows))}
    assert counts.pop("middle_subject") == 1
    assert set(counts.values()) == {2}


def test_the_peak_of_the_average_is_where_it_was_put_and_empty_buckets_have_none():
    rows = [row for n in range(4) for row in cells(effects_with_peak(2, 3), name=f"known_{n}", span=(2, 3))]
    peaks = {peak.bucket: peak for peak in bucket_peaks(bucket_averages(trace_grids(rows)))}
    assert set(peaks) == {"last_subject", "first_subsequent", "last"}
    peak = peaks["last_subject"]
    assert (peak.layer_idx, peak.mean, peak.low, peak.high, peak.n) == (3, 0.5, 0.5, 0.5, 4)


def test_traces_of_models_of_different_depths_have_no_average():
    rows = cells(effects_with_peak(2, 1), name="a") + cells(effects_with_peak(2, 1, shape=(5, 6)), name="b")
    with pytest.raises(InputError, match="cannot average grids with different numbers of layers: 4, 6"):
        bucket_averages(trace_grids(rows))


def test_peaks_of_facts_are_found_if_their_average_peaks_elsewhere():
    # The two facts peak in layers 0 and 3; both have some effect in layer 2, where their average peaks.
    first = [[0.0] * 4, [0.9, 0.0, 0.6, 0.0], [0.0] * 4]
    second = [[0.0] * 4, [0.0, 0.0, 0.6, 0.9], [0.0, 0.0, 0.0, 0.95]]
    rows = cells(first, name="a", span=(1, 2)) + cells(second, name="b", span=(1, 2))
    found = {
        (peak.name, peak.among): (peak.token_idx, peak.layer_idx, peak.indirect_effect) for peak in trace_peaks(rows)
    }
    assert found == {
        ("a", "all"): (1, 0, 0.9),
        ("a", "subject"): (1, 0, 0.9),
        ("b", "all"): (2, 3, 0.95),
        ("b", "subject"): (1, 3, 0.9),
    }
    (average,) = (peak for peak in bucket_peaks(bucket_averages(trace_grids(rows))) if peak.bucket == "last_subject")
    assert average.layer_idx == 2


def test_of_equal_effects_the_first_is_the_peak():
    rows = cells([[0.2, 0.2], [0.2, 0.2]], span=(0, 2))
    assert [(peak.token_idx, peak.layer_idx) for peak in trace_peaks(rows)] == [(0, 0), (0, 0)]


def test_grids_are_sorted_by_mediator_in_their_order():
    rows = [
        row
        for name in "ab"
        for kind in ("mlp_severed", "hidden")
        for row in cells([[0.0]] * 4, name=name, mediator=kind)
    ]
    found = by_part(trace_grids(rows), "mediator")
    assert {kind: [grid.name for grid in of_one] for kind, of_one in found.items()} == {
        "mlp_severed": ["a", "b"],
        "hidden": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("exact", "start", "words"),
    [
        ([True] * 4, 0, ""),
        ([False] * 4, 0, "all cells are estimates"),
        ([True, False, False, False], 0, "75% of the cells that can have an effect are estimates"),
        ([True, True, False, True], 1, "50% of the cells that can have an effect are estimates"),
        ([True, False, True, True], 1, "25% of the cells that can have an effect are estimates"),  # a counterfactual
    ],
)
def test_the_share_of_estimated_cells_is_told(exact, start, words):
    grids = [SimpleNamespace(exact=np.array(exact).reshape(2, 2), subject_span=(start, 2)) for _ in range(2)]
    assert estimated(grids) == words
