"""What counts as a check of a program: it has held, depends on the solution, and no other was missed."""
# ruff: noqa: E501 - programs in one line

from __future__ import annotations

import re
import sys

import pytest
from judging import judged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cage is made of Linux's locks")

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
CASE = "import unittest\nclass T(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"

# right code passes, wrong code fails
TELLS = {
    "one name in two classes": "class TestZero:\n    def test_basic(self):\n        assert add(0, 0) == 0\nclass TestOne:\n    def test_basic(self):\n        assert add(1, 2) == 3",
    "one name in a case and outside": CASE.replace("(1, 2), 3", "(1, 0), 1")
    + "def test_add():\n    assert add(1, 2) == 3",
    "one test inherited twice": "class Base:\n    def test_sum(self):\n        assert add(self.x, 2) == self.x + 2\nclass TestA(Base):\n    x = 0\n    def test_sum(self):\n        assert add(1, 0) == 1\nclass TestB(Base):\n    x = 1\n",
    "called, and again in another class": "class Sums:\n    def test_sum(self):\n        assert add(1, self.x) == 1 + self.x\nclass TestA(Sums):\n    x = 0\nclass TestB(Sums):\n    x = 2\nTestA().test_sum()",
    "a caught assertion": "try:\n    assert add(1, 2) == 3\n    print('ok')\nexcept AssertionError:\n    print('failed')",
    "a caught assertion in a test": "def test_add():\n    try:\n        assert add(1, 2) == 3\n    except AssertionError as e:\n        print('failed', e)",
    "a caught assertion in a called test": "def test_add():\n    assert add(1, 2) == 3\nfor test in [test_add]:\n    try:\n        test()\n    except Exception as e:\n        print('FAIL', e)",
    "a loop that counts": "good = 0\nfor a, b, c in [(1, 0, 1), (1, 2, 3)]:\n    try:\n        assert add(a, b) == c\n        good += 1\n    except Exception as e:\n        print(e)\nprint(good)",
    "suppress": "import contextlib\nwith contextlib.suppress(Exception):\n    assert add(1, 2) == 3",
    "gather": "import asyncio\nasync def t():\n    assert add(1, 2) == 3\nasync def main():\n    await asyncio.gather(t(), return_exceptions=True)\nasyncio.run(main())",
    "a thread": "import threading\ndef t():\n    assert add(1, 2) == 3\nx = threading.Thread(target=t)\nx.start()\nx.join()",
    "an error in a thread": "import threading\nassert add(1, 0) == 1\ndef t():\n    [0, 0, 0, 0][add(1, 2)] / (add(1, 2) + 1)\nx = threading.Thread(target=t)\nx.start()\nx.join()",
    "a pool": "from concurrent.futures import ThreadPoolExecutor\ndef t():\n    assert add(1, 2) == 3\nwith ThreadPoolExecutor(1) as p:\n    p.submit(t)",
    "finally that returns": "def test_add():\n    try:\n        assert add(1, 2) == 3\n    finally:\n        return",
    "a caught assertEqual": "import unittest\nclass T(unittest.TestCase):\n    def test_add(self):\n        try:\n            self.assertEqual(add(1, 2), 3)\n        except AssertionError as e:\n            print(e)",
    "a caught raise": "def expect(found, right):\n    if found != right:\n        raise AssertionError(f'{found}')\ntry:\n    expect(add(1, 2), 3)\nexcept Exception as e:\n    print(e)",
    "a case in a function": "import unittest\ndef run():\n    class T(unittest.TestCase):\n        def test_add(self):\n            self.assertEqual(add(1, 2), 3)\n    unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\nrun()",
    "FunctionTestCase": "import unittest\ndef check():\n    assert add(1, 2) == 3\nunittest.TextTestRunner().run(unittest.FunctionTestCase(check))",
    "an error in a case": "import unittest\nclass T(unittest.TestCase):\n    def test_add(self):\n        if add(1, 2) != 3:\n            raise ValueError\n        self.assertTrue(add(1, 2))\nunittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))",
    "subTest": "import unittest\nclass T(unittest.TestCase):\n    def test_add(self):\n        for b in (0, 2):\n            with self.subTest(b=b):\n                self.assertEqual(add(1, b), 1 + b)",
    "exit under an if": "import sys\nif add(1, 2) == 3:\n    print('pass')\nelse:\n    print('fail')\n    sys.exit(1)",
    "exit with what main says": "import sys\ndef main():\n    return 0 if add(1, 2) == 3 else 1\nif __name__ == '__main__':\n    sys.exit(main())",
    "exit with a count": "import sys\nbad = 0\nif add(1, 2) != 3:\n    bad += 1\nsys.exit(bad)",
    "or exit": "add(1, 2) == 3 or exit(1)",
    "raise under an if": "def check(f):\n    if f(1, 2) != 3:\n        raise ValueError('wrong')\ncheck(add)",
    "raise SystemExit": "raise SystemExit(add(1, 2) != 3)",
    "tmp_path": "def test_a(tmp_path):\n    (tmp_path / 'x').write_text(str(add(1, 2)))\n    assert (tmp_path / 'x').read_text() == '3'\ndef test_b():\n    assert add(0, 0) == 0",
    "capsys": "def test_a(capsys):\n    print(add(1, 2))\n    assert capsys.readouterr().out == '3\\n'\ndef test_b():\n    assert add(0, 0) == 0",
    "monkeypatch": "import solution\ndef test_a(monkeypatch):\n    monkeypatch.setattr(solution, 'one', 1, raising=False)\n    assert add(solution.one, 2) == 3",
    "a fixture that is a method": "import pytest\nclass TestA:\n    @pytest.fixture\n    def x(self):\n        return 1\n    def test_a(self, x):\n        assert add(x, 2) == 3\n    def test_b(self):\n        assert add(0, 0) == 0",
    "parametrize on a class": "import pytest\n@pytest.mark.parametrize('a, b', [(0, 0), (1, 2)])\nclass TestA:\n    def test_a(self, a, b):\n        assert add(a, b) == a + b",
    "parametrize by a fixture": "import pytest\n@pytest.fixture(params=[0, 2])\ndef b(request):\n    return request.param\ndef test_a(b):\n    assert add(1, b) == 1 + b",
    "autouse": "import pytest\nmade = []\n@pytest.fixture(autouse=True)\ndef fresh():\n    made.append(add(1, 2))\n    yield\n    made.clear()\ndef test_a():\n    assert made == [3]\ndef test_b():\n    assert made == [3]",
    "setup_module": "x = None\ndef setup_module():\n    global x\n    x = 2\ndef setup_function(function):\n    global y\n    y = 3\ndef test_a():\n    assert add(1, x) == y",
    "a class in a class": "class TestOuter:\n    def test_z(self):\n        assert add(0, 0) == 0\n    class TestInner:\n        def test_a(self):\n            assert add(1, 2) == 3",
    "raises where it is expected": "import pytest\ndef check(n):\n    assert add(1, 2) == n\nwith pytest.raises(AssertionError):\n    check(4)\ncheck(3)",
}

# nothing can be said, be the code right or wrong
NOTHING = {
    "exit at the end": ("print(add(1, 2) == 3)\nimport sys\nsys.exit(0)", "no assertion was reached"),
    "exit with nothing": (
        "import sys\ndef main():\n    print('PASS' if add(1, 2) == 3 else 'FAIL')\nsys.exit(main())",
        "no assertion was reached",
    ),
    "exit with a constant of main": (
        "import sys\ndef main():\n    print(add(1, 2) == 3)\n    return 0\nsys.exit(main())",
        "no assertion was reached",
    ),
    "a raise elsewhere": ("def helper():\n    raise NotImplementedError\nprint(add(1, 2))", "no assertion was reached"),
    "a raise of a helper": (
        "add(0, 0)\ndef helper(x):\n    if x < 0:\n        raise ValueError\n    return x\nprint(add(helper(1), 2))",
        "no assertion was reached",
    ),
    "assert True": ("assert True\nadd(1, 2)", "no assertion was reached"),
    "a constant": ("add(1, 2)\nx = 3\nassert x == 3\nassert len('abc') == x", "no assertion was reached"),
    "assertTrue(True)": (CASE.replace("assertEqual(add(1, 2), 3)", "assertTrue(True); add(1, 2)"), "no assertion was"),
    "a pair": ("assert (add(1, 2) == 3, 'not three')", "no assertion was reached"),
    "callable": ("assert callable(add)", "no assertion was reached"),
    "an assertEqual of theirs": (
        "def assert_equal(a, b):\n    print(a == b)\nassert_equal(add(1, 2), 3)",
        "no assertion was reached",
    ),
    "an unknown argument": (
        "def test_a(mocker):\n    assert add(1, 2) == 3\ndef test_b():\n    assert add(0, 0) == 0",
        r"test_a was not run \(it needs an argument 'mocker'\)",
    ),
    "a generator": (
        "def test_a():\n    yield\n    assert add(1, 2) == 3\ndef test_b():\n    assert add(0, 0) == 0",
        "test_a was not run .it is a generator",
    ),
    "pytest.skip": (
        "import pytest\ndef test_a():\n    pytest.skip('later')\n    assert add(1, 2) == 3\ndef test_b():\n    assert add(0, 0) == 0",
        "test_a was not run .later",
    ),
    "mark.skip": (
        "import pytest\n@pytest.mark.skip\ndef test_a():\n    assert add(1, 2) == 3\ndef test_b():\n    assert add(0, 0) == 0",
        "test_a was not run",
    ),
    "xfail": (
        "import pytest\n@pytest.mark.xfail\ndef test_a():\n    assert add(1, 2) == 4\ndef test_b():\n    assert add(0, 0) == 0",
        "test_a was not run",
    ),
    "unittest.skip": (
        CASE.replace("    def", "    @unittest.skip('later')\n    def") + "assert add(0, 0) == 0",
        "test_add was not run .skipped: later",
    ),
    "expectedFailure": (
        CASE.replace("    def", "    @unittest.expectedFailure\n    def") + "assert add(0, 0) == 0",
        "test_add was not run .skipped: it is expected to fail",
    ),
    "a class of another name": (
        "class Adds:\n    def test_a(self):\n        assert add(1, 2) == 3\nassert add(0, 0) == 0",
        "test_a was not run",
    ),
    "a check that is never called": (
        "def check():\n    assert add(1, 2) == 3\nassert add(0, 0) == 0",
        "check was not run",
    ),
    "an end before the last": (
        "import sys\nassert add(0, 0) == 0\nsys.exit()\nassert add(1, 2) == 3",
        "ended themselves in line 3, before an assertion",
    ),
}

RAISES = "def half(x):\n    if x % 2:\n        raise ValueError('odd')\n    return x // 2\n"
NEVER = "def half(x):\n    return x // 2\n"
OTHER = "def half(x):\n    raise KeyError\n"

# code that raises as it should passes; code that does not, or raises something else, does not
EXPECTS = {
    "assert False in the try": "try:\n    half(3)\n    assert False, 'no error'\nexcept ValueError:\n    pass",
    "assert False in the else": "try:\n    half(3)\nexcept ValueError:\n    pass\nelse:\n    assert False",
    "raise in the else": "try:\n    half(3)\nexcept ValueError as e:\n    print(e)\nelse:\n    raise AssertionError('no error')",
    "pytest.fail": "import pytest\ndef test_half():\n    try:\n        half(3)\n        pytest.fail('no error')\n    except ValueError:\n        pass",
    "self.fail": "import unittest\nclass T(unittest.TestCase):\n    def test_half(self):\n        try:\n            half(3)\n            self.fail('no error')\n        except ValueError:\n            pass",
    "a flag": "raised = False\ntry:\n    half(3)\nexcept ValueError:\n    raised = True\nassert raised",
    "pytest.raises": "import pytest\nwith pytest.raises(ValueError):\n    half(3)",
    "assertRaises": "import unittest\nclass T(unittest.TestCase):\n    def test_half(self):\n        self.assertRaises(ValueError, half, 3)",
    "an assertion in the handler": "try:\n    half(3)\n    raised = False\nexcept ValueError as e:\n    raised = True\n    assert str(e) == 'odd'\nassert raised",
}

# wrong code against tests that may miss it
MISSED = {
    "an error that is caught": (
        "def add(a, b):\n    return a + b if b else 1 / b",
        "done = 0\nfor b in (1, 0):\n    try:\n        assert add(1, b) == 1 + b\n    except Exception as e:\n        print(e)",
        "the tests caught ZeroDivisionError: division by zero, and passed a check by",
    ),
    "an error before the check": (
        "def add(a, b):\n    raise TypeError('no')",
        "def test_a():\n    try:\n        found = add(1, 2)\n        assert found == 3\n    except Exception as e:\n        print(e)\nassert 'a' in str(repr) or add",
        "the tests caught TypeError: no",
    ),
    "an error in a test that is called": (
        "def add(a, b):\n    return [][0] if b else a",
        "def test_a():\n    found = add(1, 2)\n    assert found == 3\nassert add(1, 0) == 1\nfor t in (test_a,):\n    try:\n        t()\n    except Exception as e:\n        print('error', e)",
        "the tests caught IndexError",
    ),
    "an assertion that the solution catches": (
        "def each(f, xs):\n    for x in xs:\n        try:\n            f(x)\n        except BaseException:\n            pass\n    return len(xs)",
        "def check(x):\n    assert x == 2\nassert each(check, [1]) == 1",
        "a check did not hold in a call that the solution made: line 2: assert x == 2",
    ),
    "StopIteration by len": (
        "class Y:\n    def __len__(self):\n        raise StopIteration\ndef f():\n    return Y()",
        "assert all(map(lambda x: len(f()) == x, [1, 2, 3]))",
        "RuntimeError: the solution raised StopIteration",
    ),
    "StopIteration by an item": (
        "class Y:\n    def __getitem__(self, i):\n        raise StopIteration\ndef f():\n    return Y()",
        "y = f()\nassert all(map(lambda i: y[i] == i, range(3)))",
        "RuntimeError: the solution raised StopIteration",
    ),
    "StopIteration by str": (
        "class Y:\n    def __str__(self):\n        raise StopIteration\ndef f():\n    return Y()",
        "assert all(map(lambda i: str(f()) == str(i), range(3)))",
        "RuntimeError: the solution raised StopIteration",
    ),
}


def kinds(pairs):
    """Of each pair, by its name."""
    return dict(zip(pairs, judged(list(pairs.values())), strict=True))


def test_right_code_passes_and_wrong_code_fails():
    right = {name: kind for name, (kind, _) in kinds({n: (RIGHT, t) for n, t in TELLS.items()}).items()}
    wrong = {name: kind for name, (kind, _) in kinds({n: (WRONG, t) for n, t in TELLS.items()}).items()}
    assert right == dict.fromkeys(TELLS, "passed")
    assert wrong == dict.fromkeys(TELLS, "failed")


@pytest.mark.parametrize("code", [RIGHT, WRONG])
def test_where_nothing_can_be_said_the_reason_is(code):
    for name, (kind, why) in kinds({n: (code, t) for n, (t, _) in NOTHING.items()}).items():
        assert kind == "nothing", name
        assert re.search(NOTHING[name][1], why), (name, why)


def test_an_expected_error_is_a_check():
    assert {n: k for n, (k, _) in kinds({n: (RAISES, t) for n, t in EXPECTS.items()}).items()} == dict.fromkeys(
        EXPECTS, "passed"
    )
    for code in (NEVER, OTHER):
        assert {k for k, _ in kinds({n: (code, t) for n, t in EXPECTS.items()}).values()} == {"failed"}


def test_what_the_tests_miss_is_no_proof():
    for name, (kind, why) in kinds({n: (code, tests) for n, (code, tests, _) in MISSED.items()}).items():
        assert kind != "passed", name
        assert MISSED[name][2] in why, (name, why)
