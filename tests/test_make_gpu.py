"""What ``make gpu`` reports: results that are wrong, cases that fail, tests that are left out, and the files."""

import json
from dataclasses import replace
from time import perf_counter

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.__main__ import attempted
from benchmarks.gpu.cases import EXACT, SPEED
from benchmarks.gpu.comparing import Bench, exact_row, speed_row
from benchmarks.gpu.measuring import flops_of, timed
from benchmarks.gpu.shapes import SMALL, made, word_tokenizer
from benchmarks.gpu.speed import texts_apart
from benchmarks.gpu.table import FailedRow, OutcomeRow, Report
from benchmarks.gpu.tests import marked_files, run_tests

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def bench(request):
    shape = replace(SMALL[0], layers=3)
    return Bench(shape, made(shape, request.param, CPU), word_tokenizer(shape.vocabulary), rate=1e9)


@pytest.mark.parametrize("name", EXACT)
def test_a_right_result_is_exact_and_a_wrong_one_is_not(bench, name):
    assert exact_row(name, bench, EXACT[name]).passed
    case = EXACT[name](bench)
    for wrong in (case.ours * 1.5, case.ours.roll(1, 0), torch.full_like(case.ours, torch.nan)):
        assert not exact_row(name, bench, lambda bench, wrong=wrong: replace(case, ours=wrong)).passed


def test_a_benchmark_compares_results_and_times(bench):
    case = SPEED["gradients at all layers"](bench)
    row = speed_row("layers", bench, lambda bench: replace(case, target=1e9))
    assert row.passed
    assert not row.reached
    assert row.ratio == pytest.approx(row.plain_seconds / row.seconds)
    assert row.share_of_rate > 0
    if bench.is_exact:
        assert not speed_row("layers", bench, lambda bench: replace(case, ours=lambda: case.ours() * 1.01)).passed


def test_matrix_arithmetic_is_counted_with_every_kernel():
    x, layer = torch.randn(3, 4), torch.nn.Linear(4, 5)
    assert flops_of(lambda: x @ x.T) == 2 * 3 * 4 * 3
    assert flops_of(lambda: layer(x)) == 2 * 3 * 4 * 5
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn is not None:
        with torch.no_grad():
            assert flops_of(lambda: onednn(x, layer.weight, layer.bias, "none", [], "")) == 2 * 3 * 4 * 5
    assert timed(lambda: 7, CPU).result == 7


def test_grouped_queries_count_as_many_products_as_separate_ones(monkeypatch):
    """Also with the formula of torch 2.11, which refuses fewer key heads than queries."""
    query, key = torch.empty(2, 4, 5, 8, device="meta"), torch.empty(2, 2, 5, 8, device="meta")
    attention = torch.ops.aten._scaled_dot_product_efficient_attention  # of a GPU; a CPU's has no formula
    formula = flop_registry[attention]

    def strict(query, key, value, *more, **options):
        assert query.shape[1] == key.shape[1] == value.shape[1]
        return formula(query, key, value, *more, **options)

    monkeypatch.setitem(flop_registry, attention, strict)
    grouped = flops_of(lambda: attention(query, key, key, None, False))
    assert grouped == flops_of(lambda: attention(query, query, query, None, False)) == 2 * 2 * 4 * (5 * 5 * 8 * 2)


def test_texts_are_compared_up_to_the_first_token_that_differs():
    ours = torch.tensor([[[5.0, 6, 7], [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]]])  # ids, with the state, without
    plain = ours.clone()
    plain[0, :, 2] = torch.tensor([8.0, 0.25, 0.9])
    # The two tokens were nearly as likely; without the state they are different tokens.
    assert texts_apart(ours, plain) == pytest.approx(0.05)
    plain[0, :, 1] = torch.tensor([9.0, 0.4, 0.9])
    assert texts_apart(ours, plain) == 0.0


def test_a_case_that_fails_or_comes_too_late_leaves_a_row(bench):
    def broken():
        raise ValueError("no such thing")

    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    later = perf_counter() + 100
    row = attempted("case", bench, broken, later)
    assert (row.passed, "no such thing" in row.reason) == (False, True)
    assert attempted("case", bench, full, later) == FailedRow(
        "case", bench.shape.name, bench.dtype, "does not fit in memory", passed=True
    )
    assert attempted("case", bench, broken, perf_counter() - 1).reason == "out of time"


TESTS = """
import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n", range(3))
def test_right(n):
    pass


@pytest.mark.skip(reason="needs a tree")
def test_left_out():
    pass


def test_wrong():
    assert 1 == 2, "one is not two"
"""


def test_tests_are_counted_by_outcome_and_reason(tmp_path):
    files = [tmp_path / name for name in ("test_some.py", "test_missing.py", "test_unreadable.py")]
    files[0].write_text(TESTS)
    files[1].write_text("import pytest\npytest.importorskip('no_such_package')\n")
    files[2].write_text("import no_such_package\n")
    found = {(row.outcome, row.count): row for row in run_tests(files, seconds=100) if row.file.endswith("some.py")}
    assert set(found) == {("passed", 3), ("skipped", 1), ("failed", 1)}
    assert found["skipped", 1].reason == "needs a tree"
    assert "test_wrong: AssertionError: one is not two" in found["failed", 1].reason
    others = [row for row in run_tests(files[1:], seconds=100) if row.count]
    assert [(row.outcome, "no_such_package" in row.reason) for row in others] == [("skipped", True), ("failed", True)]


def test_files_with_a_case_on_a_gpu_are_found():
    names = {path.name for path in marked_files()}
    assert {"test_hooks.py", "test_quantised_gradients.py", "test_profiling.py", "test_gpu.py"} <= names


def test_each_row_is_in_both_files(tmp_path, capsys, bench):
    report = Report(tmp_path / "new", {"device": "a device"})
    report.add("exactness", exact_row("surgery", bench, EXACT["surgery"]))
    report.add("tests", OutcomeRow("tests/test_some.py", "skipped", 2, "needs a tree | or two"))
    assert report.passed
    report.add("speed", FailedRow("trace", "1B", "float32", "no such thing"))
    found = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert [len(found[title]) for title in ("exactness", "tests", "speed")] == [1, 1, 1]
    assert (found["machine"], found["passed"]) == ({"device": "a device"}, False)
    text = (tmp_path / "new" / "gpu.md").read_text()
    assert "| tests/test_some.py | 2 | skipped | needs a tree \\| or two |" in text
    assert "| trace | 1B | float32 | no such thing |" in text
    assert capsys.readouterr().out.count("\n") == 3
