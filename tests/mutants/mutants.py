"""Change the code at random, one change at a time, and report the changes that no test notices.

``make mutants`` draws changes in the modules that make numbers: swapped operators and arguments, constants that are
one off, dropped ``not`` and ``float()``, slices that begin or end one too late or too early. For each change, the test
files of the module run until the first failure, in a copy of the repository. A change that survives is a missing test,
or it is equivalent: the numbers are the same, or only time and memory change.
"""

import argparse
import ast
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TOP = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"
)
TESTS = {  # files of a folder -> the tests that see their numbers, fast ones first
    "stats.py": "test_finite.py facts/test_buckets.py",
    "finite.py": "test_finite.py",
    "facts/buckets.py": "facts/test_buckets.py",
    "facts/grids.py": "facts/test_buckets.py tracing/test_tables.py test_finite.py",
    "engine": "engine sweep/test_sweep.py",
    "sweep": "sweep/test_sweep.py tracing/test_approximate.py",
    "slots/next_token.py": "slots",
    "surgery/hooks.py": "surgery/test_hooks.py",
    "surgery/plan.py": "surgery/test_plan.py",
    "surgery/generation.py": "surgery/test_generation.py",
    "prompts/batches.py": "prompts/test_batches.py surgery/test_hooks.py",
    "anatomy/vocabulary.py": "anatomy engine/test_trunk.py",
    "anatomy/attention.py": "anatomy engine/test_trunk.py",
    "attribution/methods/gradients.py": "attribution/test_gradients.py",
    "attribution/methods/layer_gradients.py": "attribution/test_layer_gradients.py",
    "attribution/methods/mask*.py": "attribution/test_masking.py attribution/test_lime.py",
    "attribution/methods/discretized.py": "attribution/test_discretized.py",
    "attribution/methods/attention.py": "attribution/test_attention.py",
    "attribution/steps": "attribution/test_step_functions.py attribution/test_own_functions.py "
    "attribution/test_contrasts.py attribution/test_dropout.py attribution/test_attribute.py "
    "attribution/test_gradients.py",
    "attribution/result/aggregation.py": "attribution/test_aggregation.py test_finite.py",
    "attribution/result/scores.py": "attribution/test_aggregation.py test_finite.py",
    "probing/effects.py": "probing/test_knowledge_prober.py test_finite.py",
    "probing/knowledge_prober.py": "probing/test_knowledge_prober.py test_finite.py",
    "probing/neurons.py": "probing/test_knowledge_prober.py test_finite.py",
    "probing/top_inputs.py": "probing/test_top_inputs.py",
    "probing/heads.py": "probing/test_heads.py",
    "probing/_logit_*.py": "probing/test_logit_lens.py test_finite.py",
    "probing/composition.py": "probing/test_composition.py",
    "probing/head_flow.py": "probing/test_head_flow.py",
    "tracing/noise.py": "tracing/test_noise.py",
    "tracing/result.py": "tracing/test_trace.py",
    "tracing/mediators.py": "tracing/test_mediators.py tracing/test_trace.py",
    "tracing/approximate.py": "tracing/test_screening.py tracing/test_approximate.py test_finite.py",
    "tracing/tables.py": "tracing/test_tables.py test_finite.py",
    "slots/decoding.py": "selfie/test_selfie.py selfie/test_batches.py selfie/test_sources.py",
    "selfie/readings.py": "selfie/test_selfie.py selfie/test_batches.py selfie/test_wrong_states.py",
    "control/training.py": "control",
}
OPERATORS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
    ast.FloorDiv: "*", ast.Mod: "//", ast.Pow: "*", ast.And: "or", ast.Or: "and",
}  # fmt: skip
OPPOSITES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"}
PROMOTIONS = ("float", "double")
MESSAGES = (ast.Raise, ast.Assert, ast.JoinedStr)
SYMMETRIC = ("zip", "min", "max", "isinstance")
"""Functions whose arguments are not swapped: the result is the same, or every call fails."""


@dataclass(frozen=True)
class Mutant:
    """One change: the text of a node in a file, and what takes its place."""

    path: Path
    line: int
    start: int
    """First byte of the text in the file."""
    old: str
    new: str

    def applied(self, source: bytes) -> bytes:
        """Return the source with the change."""
        return source[: self.start] + self.new.encode() + source[self.start + len(self.old.encode()) :]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield the changes of one file, without those of messages, annotations and docstrings."""
    source = path.read_text(encoding="utf-8")
    lines = [0]
    for text in source.encode().splitlines(keepends=True):
        lines.append(lines[-1] + len(text))
    for node in _code(ast.parse(source)):
        for new in _changes(node, source):
            old = ast.get_source_segment(source, node)
            assert old is not None
            yield Mutant(path, node.lineno, lines[node.lineno - 1] + node.col_offset, old, new)


def _code(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that compute something."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(
            node, (ast.Raise, ast.Assert, ast.JoinedStr)
        ):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                if isinstance(child, ast.expr):
                    yield child
                yield from _code(child)


def _changes(node: ast.expr, source: str) -> Iterator[str]:
    """Yield texts that may take the place of an expression."""

    def text(part: ast.expr) -> str:
        return ast.get_source_segment(source, part) or ""

    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in OPERATORS:
            yield f"{text(left)} {OPERATORS[type(operator)]} {text(right)}"
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            yield f"({text(left)}) {OPERATORS[type(operator)]} ({text(right)})"
        case ast.BoolOp(op=operator, values=values):
            yield f" {OPERATORS[type(operator)]} ".join(f"({text(value)})" for value in values)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield f"({text(operand)})"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield f"({value + 1})"
            yield f"({value - 1})"
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=[]) if name in PROMOTIONS:
            yield text(value)
        case ast.Call(func=ast.Name(id="in_float64"), args=[value]):
            yield f"({text(value)})"
        case ast.Call(func=function, args=[first, second, *rest], keywords=keywords) if text(function) not in SYMMETRIC:
            named = [f"{one.arg}={text(one.value)}" for one in keywords if one.arg]
            yield f"{text(function)}({', '.join([*map(text, (second, first, *rest)), *named])})"
        case ast.Name(id=name) if name in OPPOSITES:
            yield OPPOSITES[name]
        case ast.Slice(lower=lower, upper=upper, step=None):
            yield f"{f'({text(lower)}) + 1' if lower else 1}:{text(upper) if upper else ''}"
            yield f"{text(lower) if lower else ''}:{f'({text(upper)}) - 1' if upper else -1}"


def drawn(count: int, seed: int, only: str) -> list[tuple[Mutant, str]]:
    """Draw changes, each with its test files: first a row of ``TESTS``, then one of its changes."""
    chance, package = random.Random(seed), TOP / "interpret"
    rows = {}
    for where, tests in TESTS.items():
        paths = sorted(package.glob(where if where.endswith(".py") else f"{where}/*.py"))
        if only in where:
            rows[tests, where] = [mutant for path in paths for mutant in mutants_of(path)]
    found = []
    for _ in range(count):
        (tests, where), mutants = chance.choice(list(rows.items()))
        found.append((mutants.pop(chance.randrange(len(mutants))), tests))
    return found


def seen(mutant: Mutant, tests: str, tree: Path, seconds: int) -> str:
    """Return whether the tests see a change: ``seen``, ``NOT SEEN``, or ``too slow`` for the given time."""
    path = tree / mutant.path.relative_to(TOP)
    source = path.read_bytes()
    path.write_bytes(mutant.applied(source))
    # A fork has torch and transformers imported already; the changed package is imported anew.
    process = multiprocessing.get_context("fork").Process(target=_test, args=(tree, tests))
    try:
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return "too slow"
        return "seen" if process.exitcode else "NOT SEEN"
    finally:
        path.write_bytes(source)


def _test(tree: Path, tests: str) -> None:
    import pytest

    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        # Files that the parent has left open are none of the tests' business.
        plugins = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
        os._exit(pytest.main(["-x", "-q", *plugins, *(f"tests/{file}" for file in tests.split())]))


def main() -> None:
    """Draw changes, test each, and list those that survive."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=20, help="number of changes")
    options.add_argument("--seed", type=int, default=0, help="seed of the draw")
    options.add_argument("--only", default="", help="part of the name of a file or folder to change")
    options.add_argument("--seconds", type=int, default=600, help="longest time of the tests of one change")
    given = options.parse_args()
    import pandas  # noqa: F401, ICN001 - imported once for all forks
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    os.nice(19)
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(TOP, Path(folder) / "tree", ignore=LEFT_OUT)
        survivors = 0
        passed: set[str] = set()
        for mutant, tests in drawn(given.count, given.seed, given.only):
            if tests not in passed and seen(replace(mutant, new=mutant.old), tests, tree, given.seconds) != "NOT SEEN":
                raise SystemExit(f"{tests}: these tests fail, or are too slow, without a change")
            passed.add(tests)
            verdict = seen(mutant, tests, tree, given.seconds)
            survivors += verdict == "NOT SEEN"
            place = f"{mutant.path.relative_to(TOP)}:{mutant.line}"
            print(f"{verdict:9} {place}: {mutant.old!r} -> {mutant.new!r}", flush=True)  # noqa: T201
    print(f"{survivors} of {given.count} changes were not seen")  # noqa: T201


if __name__ == "__main__":
    main()
