"""A live server in this process, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import torch
import uvicorn

import interlace
from interlace.data.tokenizer import Tokenizer
from interlace.model.presets import preset
from interlace.serve.app import build
from interlace.serve.run import configured, listen

KEY, OTHER = "a-key-of-sixteen-or-more", "another-key-of-the-server"
TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.reasoning_content or '' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def small(**more):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300, init_std=0.2, **more)).eval()
    model.tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 3, 290)
    model.tokenizer.chat_template = TEMPLATE
    return model


class Live:
    """A server: its address, its model, and clients that bear its key."""

    def __init__(self, served, keys, most):
        self.served = served
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(configured(build(served, keys, most), most, 5))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.socket])), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def client(self, key=KEY, **more):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        # No certificates: to load them takes longer than most answers.
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=False, **more)

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        for one in self.served.values():
            one.close()
