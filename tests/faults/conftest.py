"""What became of each planted fault; tests/conftest.py prints a table of them, one row a kind."""

import contextlib

import pytest


class Fault:
    """One case of a kind of fault; its outcome is kept with the test's report."""

    def __init__(self, node, kind: str):
        self.node, self.kind = node, kind

    def _keep(self, outcome: str) -> None:
        self.node.user_properties.append(("fault", [self.kind, outcome]))

    def right(self, condition, otherwise: str = "silent", message: str = "") -> None:
        """The right value came out; else it was silently wrong, or (otherwise="lost") something is gone."""
        self._keep("right" if condition else otherwise)
        assert condition, f"{self.kind}: {otherwise} {message}"

    @contextlib.contextmanager
    def refused(self, *errors: type[Exception], says: str | tuple[str, ...] = ()):
        """One of our own errors, in plain words; `says` lists what its message must name."""
        try:
            yield
        except errors as error:
            words = (says,) if isinstance(says, str) else says
            missing = [word for word in words if word not in str(error)]
            self._keep("silent" if missing else "refused")
            assert not missing, f"{self.kind}: {error} does not name {missing}"
        except Exception:
            self._keep("traceback")
            raise
        else:
            self._keep("silent")
            raise AssertionError(f"{self.kind}: nothing was said")

    def answered(self, done, says: str | tuple[str, ...] = ()) -> None:
        """A finished process ended in a sentence on stderr: exit code not 0, no traceback, `says` named."""
        words = (says,) if isinstance(says, str) else says
        text = done.stdout + done.stderr
        if "Traceback (most recent call last)" in text:
            outcome = "traceback"
        elif done.returncode == 0 or any(word not in text for word in words):
            outcome = "silent"
        else:
            outcome = "refused"
        self._keep(outcome)
        assert outcome == "refused", f"{self.kind}: {outcome}, exit code {done.returncode}\n{text[-3000:]}"


@pytest.fixture
def fault(request):
    return lambda kind: Fault(request.node, kind)
