"""A run that was never interrupted, and processes that stop at a change of the disk."""

from typing import Any

import pytest

from reference.small_runs import Stop, unbroken_run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that was never interrupted."""
    return unbroken_run(tmp_path_factory.mktemp("unbroken"))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Let the process do ``allowed`` things to the disk, then none; returns what was done, as it happens."""

    def arm(allowed: int, error: BaseException, changes: list[tuple[Any, str]]) -> list[str]:
        done: list[str] = []
        for owner, name in changes:
            real = getattr(owner, name)

            def counted(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
                if len(done) >= allowed:
                    raise error
                done.append(name)
                return real(*args, **kwargs)

            monkeypatch.setattr(owner, name, counted)
        return done

    return arm
