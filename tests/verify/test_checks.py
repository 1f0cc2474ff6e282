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
    "a test that returns": "def test_a():\n    return add(1, 2) == 3\ndef test_b():\n    assert add(0, 0) == 0",
    "match": "match add(1, 2):\n    case 3:\n        pass\n    case _:\n        raise AssertionError",
    "indirect": "import pytest\n@pytest.fixture\ndef n(request):\n    return request.param + 1\n@pytest.mark.parametrize('n', [0], indirect=True)\ndef test_a(n):\n    assert add(n, 2) == 3",
    "a class method": "class TestA:\n    @classmethod\n    def test_a(cls):\n        assert add(1, 2) == 3",
    "a static method": "class TestA:\n    @staticmethod\n    def test_a():\n        assert add(1, 2) == 3",
    "a helper that raises": "def expect(a, b):\n    if a != b:\n        raise Exception(f'{a} != {b}')\nexpect(add(1, 2), 3)",
    "a loop over globals": "def test_a():\n    assert add(1, 2) == 3\nfor n, f in list(globals().items()):\n    if n.startswith('test_'):\n        try:\n            f()\n        except AssertionError as e:\n            print(n, 'failed')",
    "a decorator that catches": "done = []\ndef case(f):\n    try:\n        f()\n        done.append(f)\n    except AssertionError:\n        print('FAIL')\n@case\ndef test_a():\n    assert add(1, 2) == 3",
    "a context that catches": "class Quiet:\n    def __enter__(s): return s\n    def __exit__(s, *a): return True\nwith Quiet():\n    assert add(1, 2) == 3",
    "a list of errors": "errors = []\ndef check(a, b, c):\n    try:\n        assert add(a, b) == c\n    except AssertionError as e:\n        errors.append(e)\ncheck(1, 2, 3)",
    "a TestCase as a helper": "import unittest\nt = unittest.TestCase()\ntry:\n    t.assertEqual(add(1, 2), 3)\nexcept AssertionError:\n    pass",
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
    "a skip of all": (
        "import pytest\nassert add(0, 0) == 0\npytest.skip('later', allow_module_level=True)",
        "not checked: later",
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
    "an error that a handler names": (
        "def add(a, b):\n    if b > 1: raise ValueError('big')\n    return a + b",
        "assert add(1, 0) == 1\ntry:\n    assert add(1, 2) == 3\n    print('ok')\nexcept ValueError as e:\n    print(e)",
        "the tests caught ValueError: big, and passed a check by",
    ),
    "an error of the tests' own": (
        WRONG,
        "class Fail(Exception): pass\nassert add(0, 0) == 0\ntry:\n    if add(1, 2) != 3:\n        raise Fail('x')\nexcept Fail as e:\n    print(e)",
        "the tests caught Fail: x",
    ),
    "a mock's part replaced": (
        "class Yes:\n    def assert_called_once_with(s, *a): pass\ndef call(o): o.run = Yes()",
        "from unittest.mock import Mock\nm = Mock()\ncall(m)\nm.run.assert_called_once_with(2)",
        "Mock of the tests cannot be used by a solution",
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


# what classes and functions offer, used as tests use it
SHAPES = {
    "a singleton": (
        "class S:\n    _i = None\n    def __new__(cls):\n        cls._i = cls._i or super().__new__(cls)\n        return cls._i\n_c = S()\ndef get(): return _c",
        "assert S() is S() and get() is get() and get() is S()",
    ),
    "format and round": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __format__(s, spec): return format(s.x, spec)\n    def __round__(s, n=0): return round(s.x, n)\n    def __floor__(s): return int(s.x)\n    def __index__(s): return int(s.x)",
        "import math\nassert f'{V(1.2):.1f}' == '1.2' and round(V(1.234), 1) == 1.2 and math.floor(V(1.5)) == 1 and [0, 1][V(1)] == 1",
    ),
    "compared with a number": (
        "class Money:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == (o.x if isinstance(o, Money) else o)\n    def __lt__(s, o): return s.x < o\n    def __ge__(s, o): return s.x >= o\n    def __sub__(s, o): return s.x - o\n    def __len__(s): return s.x",
        "m = Money(5)\nassert m == 5 and m != 6 and 5 == m and m < 6 and not m < 5 and m >= 5 and m > 4 if hasattr(m, 'gt') else m == 5\nassert m - 2 == 3 and abs(len(m) - 5) == 0",
    ),
    "compared with a list, a text, a mapping": (
        "class Bag:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == getattr(o, 'x', o)",
        "assert Bag([1, 2]) == [1, 2] and Bag([1]) != [1, 2] and Bag('ab') == 'ab' and Bag({1: 2}) == {1: 2} and Bag({1}) == {1} and Bag((1,)) == (1,) and Bag(None) == None and Bag(True) == True and Bag(2.5) == 2.5",
    ),
    "modulo": (
        "class Mod:\n    def __init__(s, x, m): s.x, s.m = x % m, m\n    def __eq__(s, o): return s.x == (o.x if isinstance(o, Mod) else o % s.m)",
        "assert Mod(3, 7) == 10 and not Mod(3, 7) == 11",
    ),
    "other operators": (
        "class F:\n    def __init__(s, x): s.x = x\n    def __rtruediv__(s, o): return F(o / s.x)\n    def __pos__(s): return s\n    def __lshift__(s, n): return F(s.x << n)\n    def __imul__(s, n): s.x *= n; return s\n    def __divmod__(s, n): return divmod(s.x, n)\n    def __rpow__(s, o): return F(o ** s.x)\n    def __abs__(s): return abs(s.x)",
        "assert (1 / F(2)).x == 0.5 and (+F(2)).x == 2 and (F(1) << 3).x == 8 and divmod(F(7), 2) == (3, 1) and (2 ** F(3)).x == 8\nv = w = F(2)\nv *= 3\nassert v.x == 6 and v is w and abs(v) == 6",
    ),
    "async with and async for": (
        "import asyncio\nclass A:\n    def __init__(s): s.n, s.lock = 0, asyncio.Lock()\n    async def __aenter__(s): return s\n    async def __aexit__(s, *e): return True\n    def __aiter__(s): return s\n    async def __anext__(s):\n        async with s.lock: s.n += 1\n        if s.n > 2: raise StopAsyncIteration\n        return s.n\nasync def f(n):\n    for i in range(n):\n        await asyncio.sleep(0)\n        yield i\nasync def retry(g):\n    try: return await g()\n    except ValueError: return await g()",
        "import asyncio\ncalls = []\nasync def g():\n    calls.append(1)\n    if len(calls) < 2: raise ValueError\n    return 'ok'\nasync def main():\n    async with A() as a:\n        assert [x async for x in a] == [1, 2]\n        raise ValueError\n    assert [x async for x in f(3)] == [0, 1, 2]\n    assert await retry(g) == 'ok'\nasyncio.run(main())",
    ),
    "a generic class": (
        "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass Stack(Generic[T]):\n    def __init__(s): s.i = []\n    def push(s, x): s.i.append(x)\n    def pop(s): return s.i.pop()",
        "s = Stack[int]()\ns.push(1)\nassert s.pop() == 1",
    ),
    "a module of another name": (RIGHT, "import my_module\nassert my_module.add(1, 2) == 3"),
    "all of a module": (RIGHT, "from my_module import *\nassert add(1, 2) == 3"),
    "a module under a short name": (RIGHT, "import my_module as m\nassert m.add(1, 2) == 3"),
    "a patched part of it": (
        "def fetch(): raise OSError\ndef use(): return fetch() + 1",
        "import my_module\nfrom unittest.mock import patch\nwith patch('my_module.fetch', return_value=2):\n    assert my_module.use() == 3",
    ),
    "streams": (
        "def count(f): return sum(1 for _ in f)\ndef head(f):\n    with f: return f.readline()\ndef put(f): f.write('x')",
        "import io\nassert count(io.StringIO('a\\nb')) == 2 and head(io.StringIO('a\\nb')) == 'a\\n'\nf = io.StringIO()\nput(f)\nassert f.getvalue() == 'x'",
    ),
    "paths, times, ids": (
        "import uuid\nfrom datetime import *\nfrom pathlib import Path\nfrom zoneinfo import ZoneInfo\ndef name(p): return p.name\ndef sub(p): return Path(p) / 'b'\ndef at(z): return datetime(2020, 1, 1, tzinfo=z)\ndef utc(d): return d.astimezone(timezone.utc).hour\ndef one(): return uuid.UUID(int=1)",
        "import uuid\nfrom datetime import *\nfrom pathlib import Path\nassert name(Path('a/b')) == 'b' and sub(Path('a')) == Path('a/b') and one() == uuid.UUID(int=1)\nz = timezone(timedelta(hours=2))\nassert at(z) == datetime(2020, 1, 1, tzinfo=z) and utc(datetime(2020, 1, 1, 5, tzinfo=z)) == 3 and at(timezone.utc).tzinfo == timezone.utc",
    ),
    "views and defaults": (
        "from collections import defaultdict\ndef f(): return {1: 2, 0: 3}\ndef keys(): return f().keys()\ndef items(): return f().items()\ndef values(): return f().values()\ndef d():\n    found = defaultdict(list)\n    found['a'].append(1)\n    return found",
        "assert keys() == {0, 1} and list(keys()) == [1, 0] and sorted(items()) == [(0, 3), (1, 2)] and list(values()) == [2, 3]\nassert d() == {'a': [1]} and d()['b'] == []",
    ),
    "a cause and the attributes": (
        "class A:\n    def __init__(s): s.x = 1\ndef f():\n    try: 1 / 0\n    except ZeroDivisionError as e: raise ValueError('x') from e",
        "import copy\na = A()\nassert vars(a) == a.__dict__ == {'x': 1}\nb = copy.deepcopy(a)\nb.x = 2\nassert a.x == 1 and b.x == 2\ndel b.x\nassert not hasattr(b, 'x')\ntry:\n    f()\nexcept ValueError as e:\n    assert isinstance(e.__cause__, ZeroDivisionError) and str(e.__cause__) == 'division by zero'\nelse:\n    assert False",
    ),
    "annotations": ("def f(a: int) -> str:\n    return ''", "assert f.__annotations__ == {'a': int, 'return': str}"),
    "a mock": (
        "def call(o): return o.run(2) + o.size",
        "from unittest.mock import MagicMock\nm = MagicMock()\nm.run.return_value, m.size = 7, 1\nassert call(m) == 8\nm.run.assert_called_once_with(2)",
    ),
    "an object of the tests compared": (
        "def has(xs, x): return x in xs\ndef top(xs): return max(xs).v",
        "class N:\n    def __init__(s, v): s.v = v\n    def __eq__(s, o): return s.v == getattr(o, 'v', o)\n    def __lt__(s, o): return s.v < o.v\nassert has([N(1)], 1) and not has([N(1)], 2) and top([N(1), N(3)]) == 3",
    ),
    "sums, slices, reflected": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + getattr(o, 'x', o))\n    __radd__ = __add__\n    def __eq__(s, o): return s.x == getattr(o, 'x', o)\n    def __getitem__(s, i): return [s.x][i]\nclass W:\n    def __add__(s, o): return NotImplemented\n    def __eq__(s, o): return NotImplemented if not isinstance(o, W) else True",
        "import pytest\nassert sum([V(1), V(2)]) == V(3) and sum([V(1)]) == 1 and V(1)[0] == 1 and V(1)[0:] == [1]\nwith pytest.raises(TypeError):\n    W() + 3\nassert W() != 3 and W() == W()",
    ),
    "a named tuple with methods": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 2\n    def total(self): return self.x + self.y",
        "p = P(1)\na, b = p\nassert p.total() == 3 and p.y == b == 2 and p == (1, 2) and p == P(1, 2)",
    ),
    "errors as values": (
        "from contextlib import contextmanager\n@contextmanager\ndef swallow(*kinds):\n    try: yield\n    except kinds: pass\ndef all_of(fs):\n    found = []\n    for f in fs:\n        try: found.append(f())\n        except Exception as e: found.append(e)\n    return found",
        "import pytest\nwith swallow(ValueError):\n    raise ValueError\nwith pytest.raises(KeyError):\n    with swallow(ValueError):\n        raise KeyError\na, b = all_of([lambda: 1, lambda: [][0]])\nassert a == 1 and isinstance(b, IndexError)",
    ),
    "either a value or an error": (
        "def div(a, b): return a / b",
        "for args, due in [((4, 2), 2), ((1, 0), ZeroDivisionError)]:\n    try:\n        assert div(*args) == due\n    except Exception as e:\n        assert type(e) is due",
    ),
    "a fixture that ends": (
        "S = []\ndef add(x): S.append(x)\ndef clear(): S.clear()\ndef size(): return len(S)",
        "import pytest\n@pytest.fixture\ndef one():\n    add(0)\n    yield 1\n    clear()\ndef test_a(one):\n    assert size() == one\ndef test_b(one):\n    assert size() == one",
    ),
}

# what cannot cross: the code may be right
BEYOND = {
    "a class of the tests": (
        "from abc import ABC, abstractmethod\nclass Shape(ABC):\n    @abstractmethod\n    def area(self): ...\n    def twice(self): return 2 * self.area()",
        "class Square(Shape):\n    def area(self): return 4\nassert Square().twice() == 8",
        "Square of the tests is made from a class of the solution",
    ),
    "a patched module": (
        "import random\ndef roll(): return random.randint(1, 6)",
        "from unittest.mock import patch\nwith patch('random.randint', return_value=9):\n    assert roll() == 9",
        "what is patched",
    ),
    "a seed": (
        "import random\ndef roll(): return random.random()",
        "import random\nrandom.seed(1)\na = roll()\nrandom.seed(1)\nassert roll() == a",
        "the state of random",
    ),
    "the environment": (
        "import os\ndef f(): return os.environ.get('A')",
        "import os\nos.environ['A'] = 'b'\nassert f() == 'b'",
        "the environment",
    ),
    "warnings": (
        "import warnings\ndef f(): warnings.warn('w')",
        "import pytest\nwith pytest.warns(UserWarning):\n    f()",
        "warnings",
    ),
    "an object of the library": (
        "def f(m): return m.group(1)",
        "import re\nassert f(re.match('a(.)', 'ab')) == 'b'",
        "Match of the tests cannot be used by a solution",
    ),
    "a module that is not there": (
        RIGHT,
        "import pandas_of_ours as pd\nassert pd.all(add(1, 2) == 3)",
        "No module named 'pandas_of_ours'",
    ),
    "a factory": (
        "class Money:\n    def __eq__(s, o): return o == 5\ndef pay(): return Money()",
        "assert pay() == 5",
        "Money of the solution says itself what it equals",
    ),
    "too deep": (
        "def depth(x): return 1",
        "x = []\nfor _ in range(900): x = [x]\nassert depth(x) == 1",
        "nested too deep",
    ),
}

# classes that the tests name, and that lie
LIARS = {
    "equal to all": ("def __eq__(s, o): return True", "assert Y() == 3"),
    "equal to itself only by name": ("def __eq__(s, o): return type(o) is int", "assert Y() == 3"),
    "less than all": ("def __lt__(s, o): return True", "assert Y() < 3"),
    "never more": ("def __gt__(s, o): return False", "assert not Y() > 3"),
    "its own attribute": (
        "def __eq__(s, o): return True\n    def __getattr__(s, n): return s",
        "assert Y().balance == 3",
    ),
    "equal to all lists": ("def __eq__(s, o): return isinstance(o, list)", "assert Y() == [3]"),
    "equal to all texts": ("def __eq__(s, o): return isinstance(o, str)", "assert Y() == 'a'"),
}


def test_what_classes_offer_crosses():
    found = kinds(SHAPES)
    assert found == {name: ["passed", ""] for name in SHAPES}


def test_what_cannot_cross_is_no_wrong_code():
    for name, (kind, why) in kinds({n: (code, tests) for n, (code, tests, _) in BEYOND.items()}).items():
        assert kind == "nothing", (name, kind, why)
        assert re.search(f"not checked: .*{BEYOND[name][2]}", why), (name, why)


def test_a_class_that_says_the_same_of_all_values_is_not_believed():
    found = kinds({n: (f"class Y:\n    {body}\n", tests) for n, (body, tests) in LIARS.items()})
    assert [name for name, (kind, _) in found.items() if kind == "passed"] == []
