"""One mutant in a process of its own: attnkit with the bug in it is imported there, and put to the laws in turn.

Nothing of attnkit is imported before. What is found goes through a pipe as it is found, so that of a process that dies
it is known at which example it did.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import hypothesis
from hypothesis.errors import UnsatisfiedAssumption

# how kernels run without a GPU, decided before Triton is imported
from tests import conftest  # noqa: F401
from tests.attnkit import conftest as interpreted  # noqa: F401
from tests.mutants.mutant import Mutant

__all__ = ["Message", "try_out"]

Message = tuple[Literal["trying", "caught", "broken", "passed"], str, int, str]
"""What happened, at which law, at which of its examples, and the first line of what was said."""


class Found(BaseException):
    """A law is broken, at this example; nothing is to be tried again or made smaller."""

    def __init__(self, example: int, failure: BaseException) -> None:
        self.example, self.failure = example, failure


def try_out(mutant: Mutant, answers: Connection) -> None:
    """Plant the bug and try one law after the other until one is broken.

    What a law says by an AssertionError is a bug found. Any other error is one of the mutant's own (``broken``): a
    patch that does not run shows nothing. But after a patch that tramples on memory errors are of any kind.
    """
    with tempfile.TemporaryDirectory(prefix="attnkit-mutant-") as folder:
        try:
            mutant.plant(Path(folder))
            sys.path.insert(0, folder)
            sys.dont_write_bytecode = True
            warnings.simplefilter("ignore")  # what is wrong makes numpy warn of nan
            # the examples of CI; none are kept
            hypothesis.settings.load_profile("ci")
            from tests.mutants import checks

            where = Path(str(sys.modules["attnkit"].__file__)).parents[1]
            if where != Path(folder):
                raise ImportError(f"attnkit must come from {folder}, but was imported from {where}")
            for name in mutant.checks:
                said = functools.partial(_send, answers, name)
                examples = _hold(checks.law(name), said)
                said("passed", examples, "")
        except Found as found:
            seen = mutant.tramples or isinstance(found.failure, AssertionError)
            answers.send(("caught" if seen else "broken", name, found.example, _line(found.failure)))
        except Exception as error:
            traceback.print_exc()
            answers.send(("broken", "", 0, _line(error)))
        answers.close()


def _hold(law: Any, said: Callable[[str, int, str], None]) -> int:
    """Run a law, which hypothesis may drive, and return how many examples it had; see `Found`."""
    tried = 0

    def counted(inner: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(inner)
        def once(*arguments: object, **options: object) -> object:
            nonlocal tried
            said("trying", tried + 1, "")
            try:
                result = inner(*arguments, **options)
            except UnsatisfiedAssumption:
                raise
            except Exception as failure:
                raise Found(tried + 1, failure) from None
            tried += 1
            return result

        return once

    if hasattr(law, "hypothesis"):
        inner = law.hypothesis.inner_test
        law.hypothesis.inner_test = counted(inner)
        law()
        law.hypothesis.inner_test = inner
    else:
        counted(law)()
    return tried


def _send(answers: Connection, name: str, what: str, examples: int, line: str) -> None:
    answers.send((what, name, examples, line))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
