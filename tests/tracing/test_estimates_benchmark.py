"""The prompts and the measures of ``benchmarks/estimates.py``."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.estimates import METHODS, N_SENTENCES, SITES, agreement, lines, prompts


def test_a_hundred_prompts_with_answers_and_foils():
    found = prompts()
    assert len(found) >= 100
    assert len({prompt.fact.name for prompt in found}) == len({prompt.fact.prompt for prompt in found}) == len(found)
    assert all(prompt.fact.foil for prompt in found)


def test_the_corrupted_sentence_has_the_other_name_as_the_one_who_gives():
    sentences = [prompt for prompt in prompts() if prompt.kind == "sentences"]
    assert len(sentences) == N_SENTENCES
    for prompt in sentences:
        clean, corrupted = prompt.fact.prompt.split(), prompt.counterfactual.split()
        unlike = [place for place, pair in enumerate(zip(clean, corrupted, strict=True)) if pair[0] != pair[1]]
        assert [(clean[place], corrupted[place]) for place in unlike] == [(prompt.fact.foil, prompt.fact.attribute)]
        assert clean.count(prompt.fact.foil) == 2 - (f"{prompt.fact.foil}," in clean)


def test_measures_are_those_of_pandas_and_of_counting():
    chance = np.random.default_rng(0)
    exact, estimate = chance.normal(size=(2, 6, 10))
    pearson, rank, recall = agreement(exact, estimate)
    table = pd.DataFrame({"exact": exact.ravel(), "estimate": estimate.ravel()})
    assert pearson == pytest.approx(table.corr().iloc[0, 1])
    assert rank == pytest.approx(table.corr(method="spearman").iloc[0, 1])
    top = [set(table[name].abs().nlargest(6).index) for name in table]
    assert recall == len(top[0] & top[1]) / 6


def test_the_table_has_a_row_per_kind_site_and_estimate():
    chance = np.random.default_rng(0)

    def effects():
        found = {f"{method} {site}": chance.normal(size=(3, 4)) for method in METHODS for site in SITES}
        return found | {f"{method} seconds": np.array(2.0 if method == "exact" else 0.5) for method in METHODS}

    table = list(lines([("facts", effects()), ("sentences", effects()), ("facts", effects())]))
    assert len(table) == 2 + 2 * len(SITES) * 2
    assert table[2].startswith("| facts | 2 | hidden | approximate | ")
    assert all(row.endswith(" | 0.25 (0.25 to 0.25) |") for row in table[2:] if row.startswith("| facts"))
    assert all(row.endswith(" | 0.25 |") for row in table[2:] if row.startswith("| sentences"))  # one prompt
