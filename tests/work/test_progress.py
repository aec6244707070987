"""Progress bars of Python calls: shown to people only, counted by inner loops, off by one argument."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from rich.console import Console

import interpret
from interpret.work import progress

PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"


@pytest.fixture
def watched(monkeypatch):
    """A terminal that somebody watches; returns what was written to it."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, emoji=False)
    monkeypatch.setattr(progress, "err", console)
    return console.file.getvalue


def test_loops_inside_a_call_move_its_bar(watched):
    with progress.showing("Tracing", shown=True):
        assert list(progress.counted([1, 2])) == [1, 2]
        assert list(progress.counted(iter("ab"), 2)) == ["a", "b"]
    assert "Tracing" in watched()
    assert "4/4" in watched()


def test_a_call_inside_a_call_has_no_bar_of_its_own(watched):
    with progress.showing("Outer", shown=True), progress.showing("Inner", shown=True):
        list(progress.counted(range(3)))
    assert "Inner" not in watched()
    assert "3/3" in watched()


def test_a_call_inside_a_run_leaves_the_screen_to_the_bar_of_the_run(watched):
    with progress.progress_bar("Probing", iter(range(2)), 2) as units:
        for _ in units:
            with progress.showing("Tracing", shown=True):
                assert list(progress.counted(range(3))) == [0, 1, 2]
    assert "Tracing" not in watched()
    assert "2/2" in watched()


def test_a_stream_has_a_bar_until_it_ends(watched):
    assert list(progress.streamed("Interpreting", iter("abc"), 3, shown=True)) == ["a", "b", "c"]
    assert "Interpreting" in watched()
    assert "3/3" in watched()


def test_an_abandoned_stream_frees_the_screen(watched):
    stream = progress.streamed("Interpreting", iter("abc"), 3, shown=True)
    assert next(stream) == "a"
    with progress.showing("Tracing", shown=True):
        assert list(progress.counted(range(2))) == [0, 1]
    assert "Tracing" not in watched()
    stream.close()
    with progress.showing("Locating", shown=True):
        assert list(progress.counted(range(2))) == [0, 1]
    assert "Locating" in watched()


def test_two_threads_share_one_screen(watched):
    with progress.showing("Tracing", shown=True), ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: list(progress.streamed("Locating", "ab", 2, shown=True))).result() == ["a", "b"]
    assert "Locating" not in watched()


def test_a_loop_that_no_call_watches_shows_nothing(watched):
    assert list(progress.counted(range(3))) == [0, 1, 2]
    with progress.showing("Tracing", shown=False):
        list(progress.counted(range(3)))
    assert watched() == ""


def test_nothing_is_written_to_a_file(monkeypatch):
    console = Console(file=io.StringIO(), emoji=False)
    monkeypatch.setattr(progress, "err", console)
    with progress.showing("Tracing", shown=True):
        list(progress.counted(range(3)))
    assert console.file.getvalue() == ""


def test_a_notebook_shows_the_bar_as_html_and_takes_it_away(monkeypatch):
    ipython = pytest.importorskip("IPython.display", reason="notebooks are tested where IPython is installed")
    shown = []

    class Handle:
        update = staticmethod(lambda html: shown.append(html.data))

    monkeypatch.setattr(progress, "err", Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(ipython, "display", lambda html, display_id: shown.append(html.data) or Handle)
    with progress.showing("Tracing", shown=True):
        list(progress.counted(range(1000)))
    assert shown[0] == "Tracing …"
    assert shown[-2:] == ['Tracing <progress value="1000" max="1000"></progress> 1000 of 1000', ""]
    assert len(shown) <= 104


@pytest.mark.parametrize("options", [{}, {"progress": False}], ids=["on", "off"])
def test_every_call_has_a_bar_and_one_argument_that_turns_it_off(opened, watched, options):
    model, tokenizer = opened
    fact = interpret.Fact("a", PROMPT, SUBJECT, "Paris", foil="Rome")
    template = interpret.interpretation_prompt(tokenizer, "It says {slots} is")
    interpret.trace(model, tokenizer, PROMPT, SUBJECT, samples=1, **options)
    interpret.attribute(model, tokenizer, PROMPT, max_new_tokens=1, **options)
    interpret.locating.locate_facts(model, tokenizer, [fact], **options)
    prober = interpret.probing.KnowledgeProber(model, tokenizer)
    prober.scan([("a b", "b a"), ("c d", "d c")], 0, n_permutations=2, **options)
    interpret.interpret(PROMPT, tokenizer, template, model, [(0, 1)], max_new_tokens=1, **options)
    target = {"layer": 1, "positions": [-1], "target": torch.ones(model.config.hidden_size)}
    with interpret.control.supervised_control(model, [1, 2], **target, steps=1, **options):
        pass
    words = ("Tracing", "Attributing", "Locating", "Reading neurons", "Interpreting", "Training")
    assert [word in watched() for word in words] == [not options] * 6


@pytest.mark.parametrize("options", [{}, {"progress": False}], ids=["on", "off"])
def test_every_stream_has_a_bar_and_one_argument_that_turns_it_off(opened, watched, options):
    model, tokenizer = opened
    template = interpret.interpretation_prompt(tokenizer, "It says {slots} is")
    sources = interpret.plan_sources(model, tokenizer, [interpret.Prompt("a", PROMPT, "", raw=True)], layers="0")
    settings = interpret.selfie.Settings(new_tokens=1, prompt_output_tokens=0)
    rows = list(interpret.interpretations(model, tokenizer, sources, [template], settings, **options))
    facts = [interpret.Fact("a", PROMPT, SUBJECT, "Paris")]
    one_sample = interpret.tracing.TraceSettings(samples=1)
    list(interpret.tracing.trace_facts(model, tokenizer, facts, settings=one_sample, **options))
    for bar in (f"Interpreting {len(rows)}", "Tracing 1"):
        doing, total = bar.split()
        assert [doing in watched(), f"{total}/{total}" in watched()] == [not options] * 2
