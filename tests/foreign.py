"""What other people's clients answer; called in another process, as they leave connections and event loops open."""

from __future__ import annotations

import json

from live import KEY

HELLO = [{"role": "user", "content": "the quick"}]


def litellm_answer(url, **more):
    """Content, thought, total tokens and the first call's arguments."""
    import litellm

    given = litellm.completion(**_litellm(url), messages=HELLO, **more)
    message = given.choices[0].message
    calls = message.tool_calls or []
    called = json.loads(calls[0].function.arguments) if calls else None
    return message.content, getattr(message, "reasoning_content", None), given.usage.total_tokens, called


def litellm_streamed(url):
    """Content and total tokens, rebuilt from the pieces of a stream."""
    import litellm

    usage = {"include_usage": True}
    chunks = list(litellm.completion(**_litellm(url), messages=HELLO, stream=True, stream_options=usage))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HELLO)
    return rebuilt.choices[0].message.content, rebuilt.usage.total_tokens


def litellm_responses(url):
    """The text of the last item."""
    import litellm

    return litellm.responses(**_litellm(url), input="the quick").output[-1].content[0].text


def langchain_answer(url, **more):
    """Text."""
    return _langchain(url, **more).invoke("the quick").text


def langchain_streamed(url):
    """Text, put together from a stream."""
    return "".join(chunk.content for chunk in _langchain(url).stream("the quick"))


def langchain_called(url, tool):
    """The first call's arguments."""
    return _langchain(url).bind_tools([tool], parallel_tool_calls=False).invoke("the quick").tool_calls[0]["args"]


def langchain_structured(url, schema):
    """A value of a schema."""
    return _langchain(url).with_structured_output(schema).invoke("the quick")


def _litellm(url):
    return {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": KEY, "num_retries": 0}


def _langchain(url, **more):
    import langchain_openai

    return langchain_openai.ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model="tiny", max_retries=0, **more)
