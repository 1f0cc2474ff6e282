from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from interlace.base.errors import ConfigError, Failure
from interlace.sandbox import templates as templates_module
from interlace.sandbox.templates import Templates
from interlace.sandbox.worker import OutOfBounds, Worker


@pytest.fixture(scope="module")
def templates():
    made = Templates(seconds=2.0)
    yield made
    made.close()


def test_templates_take_any_text(templates):
    for text in ("x", "lone \ud800", "nul \0", "{{ 7 * 7 }}", "y" * 5_000_000):
        assert templates.render("<{{ a }}>\n", {"a": text}, "here") == f"<{text}>\n"
    assert templates.render("{{ a }}, {{ b }}", {"a": None, "b": [None]}, "here") == ", [None]"
    assert templates.names("{{ a }}{% for x in b %}{{ x + c }}{% endfor %}{{ range(3) }}", "here") == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "reaches outside its sandbox"),
        ("{{ cycler.__init__.__globals__ }}", "reaches outside its sandbox"),
        ("{{ a.append(1) }}", "reaches outside its sandbox"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "longer than 2 seconds"),
        ("{{ 'a' * 10000000000 }}", "needed more than 256 MiB"),
        (
            "{% set n = namespace(a='aaaa') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
            "needed more than 256 MiB",
        ),
        ("{{ range(10**9) }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ b }}", "uses a name that is not given: 'b' is undefined (given: a)"),
        ("{% if %}", "is not a template: line 1"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('not like this') }}", "the template says: not like this"),
        ("{% include 'secrets' %}", "the template"),
    ],
)
def test_what_a_template_may_not_do_is_one_sentence(templates, template, said):
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        templates.render(template, {"a": [1]}, "steps.x.prompt")
    assert str(error.value).startswith("steps.x.prompt: ")
    assert said in str(error.value)
    assert time.monotonic() - start < 10
    assert templates.render("{{ a[0] }}", {"a": [1]}, "here") == "1"  # the next one is served


def test_nothing_is_imported_from_where_we_are_called_and_a_failed_start_is_said(tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('taken from here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(templates_module, "_idle", [])
    made = Templates()
    assert made.render("{{ a }}", {"a": 1}, "here") == "1"
    made._worker.close()
    with pytest.raises(Failure, match=r"a process for interlace\.nothing could not be started"):
        Worker("interlace.nothing").ask({})


def test_a_process_that_was_left_is_taken_over_and_one_is_kept(monkeypatch):
    monkeypatch.setattr(templates_module, "_idle", [])
    first, second = Templates(), Templates()
    processes = []
    for one in (first, second):
        assert one.render("{{ a }}", {"a": 1}, "here") == "1"
        processes.append(one._worker._process)
    first.close()
    second.close()
    first.close()
    assert [p.poll() is None for p in processes] == [True, False]
    third = Templates(seconds=0.5)
    assert third._worker._process is processes[0]
    with pytest.raises(ConfigError, match="longer than 0.5 seconds"):
        third.render("{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}", {}, "here")
    third._worker.close()


def test_a_forked_process_starts_its_own():
    """Two processes on the same pipes would take each other's answers; whether the worker was left or is in use."""
    code = (
        "import os; from interlace.sandbox.templates import Templates; left, used = Templates(), Templates()\n"
        "assert [x.render('{{ 1 }}', {}, 'x') for x in (left, used)] == ['1', '1']; left.close()\n"
        "before = left._worker._process.pid, used._worker._process.pid; child = os.fork(); left = Templates()\n"
        "text = [x.render('{{ 1 }}', {}, 'x') for x in (left, used)]\n"
        "after = left._worker._process.pid, used._worker._process.pid; left._worker.close(); used._worker.close()\n"
        "same = len({*before} & {*after}); os._exit(same) if not child else print(text, same, os.waitpid(child, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['1', '1'] 2 0\n"


def test_filters_take_no_options_that_are_called(templates):
    with pytest.raises(ConfigError, match="unexpected keyword argument"):
        templates.render("{{ a | tojson(cls=namespace) }}", {"a": 1}, "here", chat=True)


def test_chat_templates_are_rendered_as_their_makers_do(templates):
    assert templates.render("{%- if a %}\n  {{ b }}\n{%- endif %}", {"a": 1}, "here", chat=True) == "  "
    text = "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}"
    assert templates.render(text, {}, "here", chat=True) == "1"
    assert templates.render("{{ {'a': 'é'} | tojson }}", {}, "here", chat=True) == '{"a": "é"}'


def test_a_worker_that_was_stopped_is_started_anew(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(
        "import os, time\n"
        "def answer(request):\n"
        "    if request == 'die': os._exit(3)\n"
        "    if request == 'hang': time.sleep(60)\n"
        "    if request == 'eat': return 'x' * (1 << 40)\n"
        "    if request == 'wrong': raise KeyError('no')\n"
        "    print('noise')\n"
        "    return [request]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("odd", seconds=0.5)
    assert worker.ask({"x": 1}) == [{"x": 1}]
    for request, said in (("die", "ended its process"), ("hang", "longer than 0.5"), ("eat", "MiB of memory")):
        with pytest.raises(OutOfBounds, match=said):
            worker.ask(request)
        assert worker.ask("fine") == ["fine"]
    with pytest.raises(Exception, match="KeyError: 'no'"):
        worker.ask("wrong")
    worker.close()


def test_threads_that_render_at_once_each_get_their_own_text(templates):
    numbers = [10**n for n in range(60)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: templates.render("{{ n }}", {"n": n}, "x"), numbers)) == list(
            map(str, numbers)
        )
