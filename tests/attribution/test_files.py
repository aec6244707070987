"""Attributions are saved and loaded without loss, and files are not overwritten by default."""

import gzip
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.files import save
from interpret.attribution.result.scores import Attributed
from interpret.errors import InputError, RunError
from reference.attributions import assert_same, made, made_info, made_one

load = Attribution.load


def floats(*shape):
    """Arrays of any float, NaN, infinities and signed zeros included."""
    return st.sampled_from([np.float16, np.float32, np.float64]).flatmap(lambda dtype: arrays.arrays(dtype, shape))


TEXTS = st.text(max_size=6)


@st.composite
def one_input(draw):
    """One input with any shapes, also empty ones."""
    T, G, S, D = (draw(st.integers(0, 3)) for _ in range(4))
    shape = draw(st.sampled_from([(T, G), (T, G, D)]))
    named = lambda strategy: draw(st.dictionaries(TEXTS, strategy, max_size=2))  # noqa: E731
    source = draw(st.booleans())
    return Attributed(
        tokens=tuple(draw(st.lists(TEXTS, min_size=T, max_size=T))),
        token_ids=tuple(draw(st.lists(st.integers(-1, 10**6), min_size=T, max_size=T))),
        words=tuple(draw(st.lists(st.integers(0, 9), min_size=T, max_size=T))),
        n_prompt=draw(st.integers(0, T)),
        start=draw(st.integers(0, T)),
        stop=T,
        scores=draw(st.none() | floats(*shape)),
        layer_scores=named(floats(*shape)),
        step_scores=named(floats(G)),
        details=named(floats(G)),
        foil_tokens=draw(st.none() | st.tuples(*[TEXTS] * G)),
        source_tokens=tuple(draw(st.lists(TEXTS, min_size=S, max_size=S))) if source else None,
        source_ids=tuple(range(S)) if source else None,
        source_words=tuple(range(S)) if source else None,
        source_scores=draw(floats(S, G)) if source else None,
    )


INFOS = st.builds(
    lambda texts, options, done: made_info(method=texts, options=options, aggregation=tuple(done)),
    TEXTS,
    st.dictionaries(TEXTS, st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS),
    st.lists(TEXTS, max_size=2),
)
ATTRIBUTIONS = st.builds(Attribution, st.lists(one_input(), max_size=3), INFOS)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attribution=ATTRIBUTIONS, compress=st.booleans())
def test_what_is_loaded_is_what_was_saved(tmp_path, attribution, compress):
    path = save(attribution, tmp_path / "a.json", overwrite=True, compress=compress)
    assert_same(load(path), attribution)


def test_the_result_saves_and_loads_itself(tmp_path):
    attribution = made(made_one(), made_one(n_prompt=2))
    attribution.save(tmp_path / "a.json")
    assert_same(Attribution.load(tmp_path / "a.json"), attribution)


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_the_file_is_strict_json_with_shapes(tmp_path):
    scores = np.array([[1.5, np.nan], [np.inf, -np.inf]], dtype=np.float32)
    path = save(made(made_one(("a", "b"), 0, scores=scores)), tmp_path / "a.json")
    content = json.loads(path.read_text(encoding="ascii"), parse_constant=no_constant)
    assert (content["format"], content["version"]) == ("interpret.attribution", 2)
    written = {"dtype": "float32", "shape": [2, 2], "values": [1.5, None, "inf", "-inf"]}
    assert content["sequences"][0]["scores"] == written


def test_a_compressed_file_is_gzip_and_says_so(tmp_path):
    plain, packed = (save(made(), tmp_path / "a.json", compress=compress) for compress in (False, True))
    assert packed == tmp_path / "a.json.gz"
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert save(made(), tmp_path / "b.json.gz", compress=True) == tmp_path / "b.json.gz"
    assert (tmp_path / "b.json.gz").read_bytes() == packed.read_bytes()
    assert packed.read_bytes()[4:8] == bytes(4), "a time of writing would tell equal attributions apart"
    assert_same(load(packed), made())


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_that_is_there_is_kept_unless_overwriting_is_asked_for(tmp_path, compress):
    path = save(made(), tmp_path / "a.json", compress=compress)
    before = path.read_bytes()
    message = f"{path} already exists; give overwrite=True to replace it, or choose another name"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        save(made(method="other"), tmp_path / "a.json", compress=compress)
    assert path.read_bytes() == before
    save(made(method="other"), tmp_path / "a.json", compress=compress, overwrite=True)
    assert load(path).info.method == "other"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_an_attribution_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = save(made(), tmp_path / "a.json")
    wrong = {
        "the info cannot be saved as JSON: Object of type set is not JSON serializable": made(options={"layers": {1}}),
        "scores of dtype int64 cannot be saved; allowed: float16, float32, float64": made(
            made_one(scores=np.zeros((7, 2), dtype=int))
        ),
    }
    for message, attribution in wrong.items():
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            save(attribution, path, overwrite=True)
        assert_same(load(path), made())
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InputError, match="^the info cannot be saved as JSON: Out of range float"):
        save(made(options={"width": float("nan")}), path, overwrite=True)


def test_a_name_that_says_compressed_needs_the_call_to_say_it(tmp_path):
    path = tmp_path / "a.json.gz"
    message = f"{path} ends in .gz; give compress=True, or choose another name"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        save(made(), path)
    assert not path.exists()


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "no" / "a.json"
    with pytest.raises(RunError, match=f"^{re.escape(str(path))} cannot be written: No such file or directory$"):
        save(made(), path)


def changed(tmp_path, change):
    """A saved attribution, changed as JSON."""
    path = save(made(), tmp_path / "a.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.update(format="x"),
            "is not an attribution file: its format is 'x', not 'interpret.attribution'",
        ),
        (lambda content: content.update(version=1), "has format version 1; this program reads version 2"),
        (lambda content: content.pop("sequences"), "is damaged: 'sequences'"),
        (lambda content: content["info"].pop("unit"), "is damaged: fields missing or unknown: unit"),
        (lambda content: content["sequences"][0].update(more=1), "is damaged: fields missing or unknown: more"),
        (
            lambda content: content["sequences"][0]["scores"]["values"].pop(),
            "is damaged: cannot reshape array of size 13 into shape (7,2)",
        ),
        (
            lambda content: content["sequences"][0]["scores"].update(dtype="object"),
            "is damaged: dtype 'object' is not one of float16, float32, float64",
        ),
    ],
)
def test_a_file_that_is_no_whole_attribution_is_refused(tmp_path, change, message):
    path = changed(tmp_path, change)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path} {message}')}$"):
        load(path)


def test_json_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(
        InputError, match="is not an attribution file: its format is None, not 'interpret.attribution'$"
    ):
        load(path)


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, compress):
    path = save(made(), tmp_path / "a.json", compress=compress)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"^{re.escape(str(path))} cannot be read: (it is not JSON: |damaged: )"):
            load(path)
    if compress:
        path.write_bytes(whole[:-8] + bytes(8))
        with pytest.raises(InputError, match="cannot be read: damaged: CRC check failed"):
            load(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} cannot be read: No such file or directory$"):
        load(path)


def test_the_helper_tells_attributions_apart():
    for other in (made_one(n_prompt=4), replace(made_one(), scores=made_one().scores + 1), made_one(scores=None)):
        with pytest.raises(AssertionError):
            assert_same(made(other), made())
