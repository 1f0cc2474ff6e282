"""One task, three ways: our verb, `lm_eval` with our class, and `lm_eval` with `transformers` on the same folder."""

from __future__ import annotations

import json
import os
import warnings
from importlib import import_module

import pytest
import torch
from configs import CONFIGS
from live import Live

os.environ.update(HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import transformers

import interlace
from interlace.cli.main import run as command
from interlace.data.tokenizer import Tokenizer
from interlace.evaluate.run import kept_rows
from interlace.serve.keys import Keys
from interlace.serve.served import Served

pytestmark = pytest.mark.slow  # lm_eval takes ten seconds to import
CHOICE = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "options",
    "doc_to_target": "label",
    "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")],
}
ANSWER = {
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "gold",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
ROLLING = {
    "dataset_path": "json",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
WORDS = ("the quick fox", "jumps over", "a slow dog", "and runs far away", "it is", "never mind the rest")


def rows_of(count):
    """Questions with choices of different lengths, and answers to be written."""
    found = []
    for i in range(count):
        options = [WORDS[(i + k) % 6] + (" again" if k == i % 3 else "") for k in range(4)]
        found.append(
            {"question": f"{WORDS[i % 6]} number {i * 7 % 11}" * (1 + i % 5), "options": options, "label": i % 4}
        )
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small random model of a released family with a tokenizer, and the rows of three tasks."""
    folder = tmp_path_factory.mktemp("lm_eval")
    torch.manual_seed(0)
    config = CONFIGS["olmo_hybrid"]()
    config.vocab_size = 300
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # so that likelihoods differ
    config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(folder / "theirs")
    ours = interlace.load(folder / "theirs")
    ours.tokenizer = Tokenizer.train(iter([" ".join(WORDS) * 30]), 300)
    interlace.save(ours, folder / "model")
    rows = rows_of(24)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": r["question"] * 3}) + "\n" for r in rows[:4]))
    return folder


def harness(kind, made, tasks, model_args=None, **more):
    """{task: (results, samples)} of `lm_eval`."""
    settings = []
    for name, task, file in tasks:
        settings.append({"task": name, **task, "dataset_kwargs": {"data_files": {"test": str(made / file)}}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lm_eval
        from lm_eval.tasks import TaskManager

        found = lm_eval.simple_evaluate(
            model=kind,
            model_args=model_args or {"pretrained": str(made / "model"), "dtype": "float32", **more},
            tasks=settings,
            task_manager=TaskManager(include_defaults=False),  # to list the thousands of its own takes ten seconds
            device="cpu",
            bootstrap_iters=0,
        )
    return {name: (found["results"][name], found["samples"][name]) for name, *_ in tasks}


def test_three_ways_give_the_same_numbers(made, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("interlace.evaluate.lm_eval")  # registers the model
    rows = [json.loads(line) for line in (made / "rows.jsonl").read_text().splitlines()]
    tasks = [("choose", CHOICE, "rows.jsonl"), ("roll", ROLLING, "texts.jsonl")]
    theirs = harness("hf", made, tasks, logits_cache=False)
    # What transformers writes is the gold, so that exact match is not 0.
    plain = [{**row, "gold": ""} for row in rows]
    (made / "say.jsonl").write_text("".join(json.dumps(r) + "\n" for r in plain))
    said = harness("hf", made, [("say", ANSWER, "say.jsonl")])["say"][1]
    texts = {s["doc_id"]: s["filtered_resps"][0] for s in said}
    gold = [{**row, "gold": texts[i] if i % 3 else "another"} for i, row in enumerate(rows)]
    (made / "say.jsonl").write_text("".join(json.dumps(r) + "\n" for r in gold))
    ours = harness("interlace", made, [*tasks, ("say", ANSWER, "say.jsonl")])

    for name in ("choose", "roll"):
        for key, value in theirs[name][0].items():
            if isinstance(value, float):
                assert ours[name][0][key] == pytest.approx(value, abs=1e-5), key
    both = zip(ours["choose"][1], theirs["choose"][1], strict=True)
    for mine, other in both:
        for a, b in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            assert float(a[0]) == pytest.approx(float(b[0]), abs=1e-3)
            assert a[1] == b[1]
    right = sum(bool(i % 3) for i in range(24)) / 24
    assert ours["say"][0]["exact_match,none"] == pytest.approx(right)

    common = 'prompt = "Question: {{ question }}\\nAnswer:"\n'
    (tmp_path / "choose.toml").write_text(
        f'kind = "choice"\ndata = "{made}/rows.jsonl"\n{common}choices = "options"\n'
        'right = "{{ options[label] }}"\nnormalise = "unconditional"\n'
    )
    (tmp_path / "say.toml").write_text(
        f'kind = "generate"\ndata = "{made}/say.jsonl"\nprompt = "{{{{ question }}}}"\nby = "exact"\n'
        'gold = "{{ gold }}."\nanswer = "{{ answer }}."\nmax_tokens = 12\nstop = ["e"]\n'
    )
    words = ["evaluate", str(made / "model"), "--tasks", str(tmp_path / "choose.toml"), str(tmp_path / "say.toml")]
    assert command([*words, "--out", str(tmp_path / "run"), "--dtype", "float32"]) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())["tasks"]
    kept = list(kept_rows(tmp_path / "run/items/choose.first.jsonl"))
    names = {"acc": "none", "acc_norm": "characters", "acc_bytes": "bytes", "acc_mutual_info": "unconditional"}
    for metric, name in names.items():
        score = sum(row["scores"][name] for row in kept) / 24
        assert score == pytest.approx(theirs["choose"][0][f"{metric},none"]), metric
    assert found["say"]["figures"]["score"]["models"][0]["value"] == pytest.approx(right)
    answers = [row["answers"][0]["text"] for row in kept_rows(tmp_path / "run/items/say.first.jsonl")]
    assert answers == [texts[i] for i in range(24)]


def test_a_task_that_needs_the_network_says_so(made, capsys):
    words = ["lm-eval", "--model", "interlace", "--model_args", f"pretrained={made / 'model'}", "--tasks", "arc_easy"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert command(words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("interlace: lm_eval: ")
    assert "Hub" in said or "arc" in said


def test_arguments_that_are_not_known_are_named(made, capsys):
    words = [
        "lm-eval",
        "--model",
        "interlace",
        "--model_args",
        f"pretrained={made / 'model'},beams=3",
        "--tasks",
        "arc_easy",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert command(words) == 2
    assert "beams: is not an argument" in capsys.readouterr().err


def test_over_http_it_is_the_same(made):
    """`lm_eval --model local-completions` against our server, and our class: the same figures and the same texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("interlace.evaluate.lm_eval")
    rows = [{**json.loads(line), "gold": "x"} for line in (made / "rows.jsonl").read_text().splitlines()]
    (made / "write.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = [("choose", CHOICE, "rows.jsonl"), ("roll", ROLLING, "texts.jsonl"), ("write", ANSWER, "write.jsonl")]
    model = interlace.load(made / "model", dtype=torch.float32)
    limit = model.config.max_positions
    live = Live({"m": Served("m", model, "4GB", 16, None)}, Keys([]), 64)
    try:
        args = {"model": "m", "base_url": f"{live.url}/v1/completions", "max_length": limit}
        served = harness("local-completions", made, tasks, {**args, "tokenizer_backend": "remote"})
    finally:
        live.close()
    ours = harness("interlace", made, tasks)
    for name in ("choose", "roll"):
        for key, value in ours[name][0].items():
            if isinstance(value, float):
                assert served[name][0][key] == pytest.approx(value, abs=1e-4), key
    for mine, other in zip(ours["choose"][1], served["choose"][1], strict=True):
        for a, b in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            assert float(a[0]) == pytest.approx(float(b[0]), abs=1e-3)
            assert a[1] == b[1]
    for mine, other in zip(ours["write"][1], served["write"][1], strict=True):
        assert mine["filtered_resps"] == other["filtered_resps"]
