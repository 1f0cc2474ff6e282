"""Judge questions and answers: how large a question is, what its answer took, and whether that answer can be used."""

from __future__ import annotations

from interlace.base.text import canonical
from interlace.distill.desk import Question
from interlace.distill.ledger.records import State
from interlace.distill.teachers.outcomes import (
    CALLS,
    CUT,
    FILTERED,
    GOOD,
    Content,
)

TURN_TOKENS = 16  # around each message: roles and marks
HIDDEN = 10_000_000  # tokens that a count may hold beyond those asked for; no model reads or writes more
DEFAULT_ANSWER_TOKENS = 4096  # reserved where a question sets no max_tokens
THOUGHTS = (  # tags around a trace
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
LETTERS_PER_TOKEN = 16  # no tokenizer's tokens are longer: a count below letters / 16 is impossible


def prompt_bytes(question: Question) -> int:
    """Return an upper bound of a prompt's tokens, without those that the endpoint's template adds."""
    size = sum(len(m["content"].encode("utf-8", "replace")) + TURN_TOKENS for m in question.messages)
    return size + (len(canonical(question.schema)) if question.schema is not None else 0)


def most_answer_tokens(question: Question) -> int:
    """Return an upper bound of an answer's tokens."""
    limits = [question.sampling.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return max([int(x) for x in limits if x] or [DEFAULT_ANSWER_TOKENS])


def counted(question: Question, found: Content) -> tuple[str, int, int]:
    """Return ("reported" or "estimated", prompt tokens, answer tokens) of an answer.

    Each count is judged alone. An impossible one is replaced by an estimate: negative, beyond any answer, or too
    small for what was written. Tokens that stand only in the total or in the details (hidden reasoning) count as the
    answer's.
    """
    size, most = prompt_bytes(question), most_answer_tokens(question)
    asked = sum(len(m["content"].encode("utf-8", "replace")) for m in question.messages)
    written = len((found.text + found.reasoning).encode("utf-8", "replace"))
    least = max(written // LETTERS_PER_TOKEN, int(written > 0))
    # a quarter of the bytes is usual for English, and a third is careful
    prompt, answer = size // 3 + 1, max(min(written // 3 + 1, most), written // 8)
    reported = 0
    if plausible(found.prompt_tokens, max(asked // LETTERS_PER_TOKEN, 1), 2 * size + HIDDEN):
        prompt, reported = found.prompt_tokens or 0, reported + 1
    if plausible(found.answer_tokens, least, most + HIDDEN):
        answer, reported = found.answer_tokens or 0, reported + 1
    if plausible(found.total_tokens, 0, 2 * size + most + HIDDEN):
        answer = max(answer, (found.total_tokens or 0) - prompt)
    if plausible(found.reasoning_tokens, answer + 1, most + HIDDEN):
        answer += found.reasoning_tokens or 0
    return "reported" if reported == 2 else "estimated", prompt, answer


def plausible(tokens: int | None, least: int, most: int) -> bool:
    """Return whether a teacher's count is possible."""
    return tokens is not None and least <= tokens <= most


def judge(found: Content) -> tuple[State, str]:
    """Return the state of an answer, and why it is not "ok"; it is "ok" only after a known good end."""
    if found.refusal:
        return "refused", f"the teacher refused: {found.refusal[:200]}"
    if found.finish in FILTERED:
        return "refused", f"the endpoint's filter stopped the answer ({found.finish})"
    if found.finish in CUT:
        return "truncated", "the answer reached max_tokens"
    if found.calls or found.finish in CALLS:
        return "unparsable", f"the answer calls a tool ({found.finish or 'tool_calls'})"
    if found.finish not in GOOD:
        return "failed", f"the answer ended with {found.finish[:40]!r}, which is no end that is known"
    text, reasoning = split_reasoning(found)
    if not text.strip():
        return "unparsable", "the answer is empty" + (" after its reasoning" if reasoning else "")
    return "ok", ""


def split_reasoning(found: Content) -> tuple[str, str]:
    """Return (answer, reasoning), whether the trace has a field of its own or stands between tags at the start."""
    if found.reasoning:
        return found.text, found.reasoning
    body = found.text.lstrip()
    for begin, end in THOUGHTS:
        if body.startswith(begin):
            trace, closed, after = body.removeprefix(begin).partition(end)
            return (after.lstrip() if closed else ""), trace.partition("<|end|>")[0].strip()
    for begin, end in THOUGHTS:  # some templates open the tag in the prompt
        if end in found.text and begin not in found.text:
            trace, _, after = found.text.partition(end)
            return after.lstrip(), trace.strip()
    return found.text, ""
