"""What somebody asks of the engine, and what comes back token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

from interlace.base.errors import InterlaceError
from interlace.generation.penalties import Penalties
from interlace.generation.sampling import Sampling
from interlace.generation.structure import Structure


@dataclass(frozen=True)
class Request:
    """One prompt to go on from.

    Attributes:
        prompt: token ids.
        max_tokens: the most to make.
        sampling, penalties: how tokens are drawn.
        seed: of the draws, from 0 below 2**64; the same tokens come whatever is answered beside it.
        ends: tokens that end an answer beside the model's own.
        stop: strings that end an answer, special tokens among them; they are not part of it.
        logprobs: how many likely alternatives come with each token's own log-probability; None for neither.
        prompt_logprobs: the same for the tokens of the prompt, but for its first; such a prompt is read whole.
        text: whether text is made of the tokens.
        afresh: whether that is a text by itself, of which some tokenizers leave out a blank at the start; else one that
            continues the prompt.
        shown: special tokens that are part of the text; others are left out of it.
        structure: the form that the answer must have; None for any.
        owner: whose states it may reuse, and who may reuse its own.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    penalties: Penalties = field(default_factory=Penalties)
    seed: int = 0
    ends: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    text: bool = True
    afresh: bool = False
    shown: tuple[str, ...] = ()
    structure: Structure | None = None
    owner: str = ""


@dataclass(frozen=True)
class Chosen:
    """How likely a token was, before temperature, penalties and biases.

    Attributes:
        logprob: its log-probability, in nats.
        top: (token, log-probability) of the likeliest, in order.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer.

    Attributes:
        token: the token that was made; None where the answer ends without one.
        text: what may be shown now: letters that a later token completes, or that a stop string may begin with, wait.
        chosen: if it was asked for.
        finish: "" while it goes on; "stop" (an end-of-text token or a stop string), "length", "cancelled" or "error".
        error: what went wrong with this request.
        reused_tokens: how many tokens of the prompt were read for an earlier request.
        prompt: how likely the tokens of the prompt were, with the first piece, if it was asked for.
    """

    token: int | None
    text: str = ""
    chosen: Chosen | None = None
    finish: str = ""
    error: InterlaceError | None = None
    reused_tokens: int = 0
    prompt: tuple[Chosen, ...] = ()


@dataclass
class Answer:
    """A whole answer.

    Attributes:
        prompt_tokens: how many the prompt has.
        reused_tokens: how many of them an earlier request had read.
        tokens: those that were made, without one that ended it.
        text: without a stop string.
        chosen: of each token, if it was asked for.
        prompt: of each token of the prompt but the first, if it was asked for.
        finish: see `Piece`.
    """

    prompt_tokens: int
    reused_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    chosen: list[Chosen] = field(default_factory=list)
    prompt: list[Chosen] = field(default_factory=list)
    finish: str = ""

    @property
    def ended(self) -> bool:
        """Whether it came to an end by itself, or by a stop string; else it had all the tokens it may have."""
        return self.finish == "stop"

    def add(self, piece: Piece) -> None:
        """Add what a step brought."""
        if piece.token is not None:
            self.tokens.append(piece.token)
        if piece.chosen is not None:
            self.chosen.append(piece.chosen)
        self.prompt += piece.prompt
        self.text += piece.text
        self.finish, self.reused_tokens = piece.finish, piece.reused_tokens
