"""The fixture `gpu_benchmark`, as a test uses it."""

from __future__ import annotations

import json
import textwrap

import pytest

from perfgate import Record
from perfgate.journal import read

from .conftest import Suite


def one(suite: Suite, body: str, *arguments: str, **environment: str) -> pytest.RunResult:
    """Run a project whose only tests are these."""
    (suite.path / "test_speed.py").unlink()
    (suite.path / "test_one.py").write_text("import pytest\n" + textwrap.dedent(body))
    return suite.run("--benchmark-json=out.json", *arguments, **environment)


def test_the_calls_result_comes_back(suite: Suite) -> None:
    one(
        suite,
        """
        def test_one(gpu_benchmark):
            assert gpu_benchmark(lambda x, y: x + y, inputs=[(1.0, 2.0), (3.0, 4.0)]) == 3.0
        """,
    ).assert_outcomes(passed=1)


def test_inputs_may_be_made_by_a_function(suite: Suite) -> None:
    one(
        suite,
        """
        def test_one(gpu_benchmark):
            assert gpu_benchmark(lambda x: x, inputs=lambda i: (i + 1.0,)) == 1.0
        """,
    ).assert_outcomes(passed=1)


def test_a_case_is_named_by_its_test_if_by_nothing_else(suite: Suite) -> None:
    one(suite, "def test_one(gpu_benchmark):\n    gpu_benchmark(lambda: 1.0)")
    assert suite.cases() == {"test_one.py::test_one"}


def test_what_is_saved_is_enough_to_judge_again(suite: Suite) -> None:
    assert suite.run("--benchmark-save=x").ret == 0
    (saved,) = (suite.path / ".benchmarks").rglob("*.json")
    document = json.loads(saved.read_text())
    records = [Record.from_json(b["extra_info"]["perfgate"]) for b in document["benchmarks"]]
    (journal,) = suite.journals
    assert {r.case.name: r for r in records} == read(journal).records
    assert "data" not in document["benchmarks"][0]["stats"]
    assert document["benchmarks"][0]["group"] == "speed"
    assert document["perfgate"]["complete"] is True
    assert document["perfgate"]["ceilings"] == {"copy_bytes_per_second": 4e12}


def test_disabled_calls_run_once_and_are_not_timed(suite: Suite) -> None:
    suite.pytester.makeconftest("def pytest_perf_clock(config):\n    raise RuntimeError('nobody may ask')")
    result = one(
        suite,
        """
        calls = []

        def test_one(gpu_benchmark):
            assert gpu_benchmark(lambda x: calls.append(x) or 7, inputs=[(1,)], check=lambda r: r == 7) == 7
            assert calls == [1]
        """,
        "--benchmark-disable",
        "--benchmark-compare",
    )
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert not suite.journals


def test_a_wrong_result_is_never_timed(suite: Suite) -> None:
    suite.pytester.makeconftest(
        """
        class Never:
            def measure(self, call, inputs=((),), *, l2="cold"):
                raise RuntimeError("timed")

        def pytest_perf_clock(config):
            return Never()
        """
    )
    result = one(
        suite,
        """
        def equals_two(result):
            assert result == 2

        def test_one(gpu_benchmark):
            gpu_benchmark(lambda: 1, check=equals_two)
        """,
        "--perf-device=cpu",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       assert 1 == 2"])


def test_used_twice_is_one_clear_line(suite: Suite) -> None:
    result = one(
        suite,
        """
        def test_one(gpu_benchmark):
            gpu_benchmark(lambda: 1.0)
            gpu_benchmark(lambda: 1.0)
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_one.py::test_one used gpu_benchmark twice*"])
    assert not (suite.path / "out.json").exists() or suite.cases() == set()


def test_one_name_for_two_cases_is_an_error_that_names_both(suite: Suite) -> None:
    result = one(
        suite,
        """
        @pytest.mark.parametrize("i", [1, 2])
        def test_one(i, gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="same")
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*'same' is timed by two tests, *::test_one?1? and *::test_one?2?*"])
    assert suite.document()["perfgate"]["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("inputs=[]", "ValueError: inputs must hold at least one tuple of arguments, got none"),
        ("inputs=[1]", "TypeError: inputs must hold tuples of arguments, got int: write *"),
        ("inputs='ab'", "TypeError: inputs must be a sequence of argument tuples or a function, got str"),
        ("inputs={1}", "TypeError: inputs must be a sequence of argument tuples or a function, got set"),
        ("l2='hot'", "ValueError: l2 must be 'cold' or 'warm', got 'hot'"),
        ("name=' a'", "ValueError: a case needs a name without blanks at its ends, got ' a'"),
        ("work=Work(flops=-1)", "ValueError: work.flops must be finite and not negative, got -1"),
        ("work=3", "TypeError: work must be a perfgate.Work, such as Work(*), got 3"),
        ("check=3", "TypeError: check must be a function, as in check=lambda result: ..., got 3"),
    ],
)
def test_a_wrong_argument_is_named(suite: Suite, arguments: str, message: str) -> None:
    result = one(
        suite,
        f"""
        from perfgate import Work

        def test_one(gpu_benchmark):
            gpu_benchmark(lambda *args: 1.0, {arguments})
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E*{message}"])


def test_a_result_in_place_of_a_call_is_named(suite: Suite) -> None:
    result = one(suite, "def test_one(gpu_benchmark):\n    gpu_benchmark(sum([1, 2]))\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*TypeError: call must be a function, as in gpu_benchmark(lambda: f(x)), got 3"])


def test_a_call_that_raises_fails_with_the_users_own_traceback(suite: Suite) -> None:
    result = one(
        suite,
        """
        def broken():
            raise ZeroDivisionError("the kernel's own")

        def test_one(gpu_benchmark):
            gpu_benchmark(broken)
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">       raise ZeroDivisionError*", "test_one.py:4: ZeroDivisionError"])
    assert not suite.journals


def test_what_cannot_be_timed_honestly_fails_with_one_line(suite: Suite) -> None:
    suite.pytester.makeconftest(
        """
        from perfgate import MeasureError

        class Strict:
            def measure(self, call, inputs=((),), *, l2="cold"):
                raise MeasureError("inside a timed window: triton compiled a kernel. Do this before")

        def pytest_perf_clock(config):
            return Strict()
        """
    )
    result = one(
        suite, "def test_one(gpu_benchmark):\n    gpu_benchmark(lambda: 1.0, name='one')", "-rN", "--perf-device=cpu"
    )
    result.assert_outcomes(failed=1)
    assert "one: inside a timed window: triton compiled a kernel. Do this before" in result.outlines
    assert "Traceback" not in result.stdout.str()


def test_the_cache_state_is_the_clocks_to_make_and_part_of_the_method(suite: Suite) -> None:
    one(
        suite,
        """
        @pytest.mark.parametrize("l2", ["cold", "warm"])
        def test_one(l2, gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name=l2, l2=l2)
        """,
    )
    methods = {
        b["extra_info"]["perfgate"]["case"]["name"]: b["extra_info"]["perfgate"]["method"]["l2"]
        for b in suite.document()["benchmarks"]
    }
    assert methods == {"cold": "cold", "warm": "warm"}


def test_out_of_memory_is_a_result_not_an_error(suite: Suite) -> None:
    result = one(
        suite,
        """
        def too_big():
            raise MemoryError("Tried to allocate 80 GiB.\\nlong story")

        def test_big(gpu_benchmark):
            gpu_benchmark(too_big, name="big")

        @pytest.fixture
        def inputs():
            raise MemoryError

        def test_inputs(inputs, gpu_benchmark):
            gpu_benchmark(lambda: 1.0)

        def test_small(gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="small")
        """,
        "-rs",
    )
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["out of memory*a result*not an error*", "*big: Tried to allocate 80 GiB."])
    part = suite.document()["perfgate"]
    assert part["out_of_memory"] == {
        "big": "Tried to allocate 80 GiB.",
        "test_one.py::test_inputs": "MemoryError",
    }
    assert part["complete"] is True
    assert read(suite.journals[0]).out_of_memory == part["out_of_memory"]


def test_what_ran_out_of_memory_is_set_free_at_once(suite: Suite) -> None:
    one(
        suite,
        """
        import gc
        import weakref

        class Big:
            pass

        held = []
        gc.disable()

        def run_out():
            big = Big()
            held.append(weakref.ref(big))
            raise MemoryError("no room")

        @pytest.fixture
        def inputs():
            run_out()

        def test_in_a_call(gpu_benchmark):
            gpu_benchmark(run_out)

        def test_after_a_call(request):
            assert held[0]() is None

        def test_in_a_fixture(inputs, gpu_benchmark):
            gpu_benchmark(lambda: 1.0)

        def test_after_a_fixture():
            gc.enable()
            assert held[1]() is None
        """,
    ).assert_outcomes(passed=2, skipped=2)


def test_nothing_of_a_case_is_held_after_its_test(suite: Suite) -> None:
    one(
        suite,
        """
        import weakref

        class Big:
            pass

        held = []

        def test_big(gpu_benchmark):
            argument, result = Big(), Big()
            held[:] = [weakref.ref(argument), weakref.ref(result)]
            gpu_benchmark(lambda x: result and 1.0, inputs=[(argument,)])

        def test_after():
            assert [ref() for ref in held] == [None, None]
        """,
    ).assert_outcomes(passed=2)


def test_memory_errors_of_other_tests_stay_errors(suite: Suite) -> None:
    one(suite, "def test_one():\n    raise MemoryError('mine')").assert_outcomes(failed=1)


def test_what_is_absent_is_said_once_and_saved(suite: Suite) -> None:
    suite.pytester.makeconftest(
        (suite.path / "conftest.py").read_text()
        + textwrap.dedent(
            """
            from perfgate.plugin import absent

            def pytest_generate_tests(metafunc):
                absent(metafunc.config, "flash_attn", "not installed: pip install flash-attn")
            """
        )
    )
    result = one(
        suite,
        """
        @pytest.mark.parametrize("i", [1, 2])
        def test_one(i, gpu_benchmark, perf_absent):
            perf_absent("cudnn", "this device has none")
            gpu_benchmark(lambda: 1.0)
        """,
    )
    for line in ("flash_attn: not installed: pip install flash-attn", "cudnn: this device has none"):
        assert sum(printed.endswith(line) for printed in result.outlines) == 1
    assert set(suite.document()["perfgate"]["absent"]) == {"flash_attn", "cudnn"}


def test_a_check_that_takes_more_memory_than_there_is_is_no_result_of_the_case(suite: Suite) -> None:
    result = one(
        suite,
        """
        def test_one(gpu_benchmark):
            def check(result):
                raise MemoryError("Tried to allocate 80 GiB.")

            gpu_benchmark(lambda: 1.0, check=check, name="speed/c")
        """,
        "-rs",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*speed/c was not timed, for its check ran out of memory (Tried to allocate 80 GiB.)*"]
    )
    result.stdout.no_fnmatch_line("out of memory*a result*")


def test_the_time_bound_is_the_clocks_and_hitting_it_is_said(suite: Suite) -> None:
    suite.pytester.makeconftest("")
    result = one(
        suite,
        """
        import itertools, time
        turns = itertools.count()

        def test_one(gpu_benchmark):
            gpu_benchmark(lambda: time.sleep(0.004 * (next(turns) % 5)))
        """,
        "--perf-device=cpu",
        "--perf-max-time=0.1",
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["note: timed on the CPU by the host's clock: --perf-device says so"])
    result.stdout.fnmatch_lines(["note: *stopped at the bound of 0.1 s: the median is known to*"])


def test_hypothesis_goes_along_in_one_session(suite: Suite) -> None:
    (suite.path / "test_speed.py").unlink()
    suite.write(
        test_one="""
        from hypothesis import given, strategies as st

        @given(st.integers())
        def test_law(x):
            assert x == x

        def test_one(gpu_benchmark):
            gpu_benchmark(lambda: 1.0)
        """
    )
    result = suite.spawn("--benchmark-json=out.json")
    result.assert_outcomes(passed=2)
    assert suite.cases() == {"test_one.py::test_one"}
