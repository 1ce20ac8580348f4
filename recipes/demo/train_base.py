"""Train the demo's short-context model: `python -m nemo_longpo.recipes.demo.train_base --output DIR`.

It learns to read short documents, to answer questions about their facts in one or several turns, and to write such a
question itself. Recall stays flat for over a thousand steps and then appears within a hundred. Three things make it
possible: names have their own form in questions, an answer repeats the name before the place (so recall is one
induction step), and the first steps also train on random sequences that repeat.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from .corpus import NAMES, PLACES, Document, answer, asked_form, make_document, question, write_request
from .tokenizer import SPECIAL_TOKENS, USER_CLOSE, build_tokenizer

_TOKENS_PER_BATCH = 8192
"""While the model is watched."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the base training; `steps` is the length of the run, and each `…_fraction` a share of it."""

    steps: int = 3000
    learning_rate: float = 1e-3
    warmup_steps: int = 30
    decay_fraction: float = 0.3
    tokens_per_step: int = 3000
    facts: int = 8
    first_lengths: tuple[int, ...] = (24, 32)
    later_lengths: tuple[int, ...] = (24, 32, 48, 64, 96)
    later_fraction: float = 0.6
    repeats_fraction: float = 0.4
    repeats_per_step: int = 64
    writing_share: float = 0.3
    writing_lengths: tuple[int, ...] = (32, 48, 64, 80, 96)
    seed: int = 1


def build_model(vocab_size: int) -> MistralForCausalLM:
    """Return an untrained Mistral of about 0.6M parameters with attention over the whole sequence."""
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            rope_theta=1e3,
            sliding_window=None,
            max_position_embeddings=4096,
            bos_token_id=SPECIAL_TOKENS.index("<s>"),
            eos_token_id=SPECIAL_TOKENS.index("</s>"),
            pad_token_id=SPECIAL_TOKENS.index("<unk>"),
        )
    )


def answering_messages(rng: random.Random, document: Document) -> list[dict[str, str]]:
    """Return a conversation that asks for every fact in random order; the first turn contains the document."""
    messages = []
    for name in rng.sample(list(document.facts), len(document.facts)):
        messages.append({"role": "user", "content": question(name)})
        messages.append({"role": "assistant", "content": answer(name, document.facts[name])})
    messages[0]["content"] = f"{document.text} {messages[0]['content']}"
    return messages


def writing_messages(rng: random.Random, document: Document) -> list[dict[str, str]]:
    """Return one turn in which the assistant writes a question about a random fact of the document."""
    return [
        {"role": "user", "content": f"{document.text} {write_request()}"},
        {"role": "assistant", "content": question(rng.choice(list(document.facts)))},
    ]


def conversation_batch(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, settings: Training, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask [batch, time] of answering and writing conversations, padded on the right."""
    rows = max(12, settings.tokens_per_step // (length + 8 * settings.facts))
    writing = round(rows * settings.writing_share)
    conversations = [answering_messages(rng, make_document(rng, length, settings.facts)) for _ in range(rows - writing)]
    for _ in range(writing):
        facts = rng.randint(2, settings.facts)
        conversations.append(writing_messages(rng, make_document(rng, rng.choice(settings.writing_lengths), facts)))
    batch: Any = tokenizer.apply_chat_template(
        conversations, padding=True, padding_side="right", return_dict=True, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


class ConversationLoss:
    """Sum of mean losses over all tokens, over the answered places, and over the names in written questions with the
    end after them: in one mean, these few tokens would count too little."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def ids(words: list[str]) -> torch.Tensor:
            return torch.tensor(tokenizer.convert_tokens_to_ids(words))

        self.places = ids(list(PLACES))
        self.asked = ids([asked_form(name) for name in NAMES])
        self.close = SPECIAL_TOKENS.index(USER_CLOSE)

    def __call__(self, model: MistralForCausalLM, x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV = model(input_ids=x_BT).logits[:, :-1]
        loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), x_BT[:, 1:], reduction="none")
        closes_BT = x_BT.eq(self.close)
        place_BT = torch.isin(x_BT, self.places) & closes_BT.roll(2, 1)
        asked_BT = torch.isin(x_BT, self.asked) & closes_BT.roll(3, 1)
        kinds = (mask_BT.bool(), place_BT, asked_BT, asked_BT.roll(1, 1))
        return torch.stack([loss_BT[kind_BT[:, 1:]].mean() for kind_BT in kinds]).sum()


def repeats_loss(rng: random.Random, model: MistralForCausalLM, vocab_size: int, rows: int) -> torch.Tensor:
    """Return the loss on the second half of repeated random sequences: it teaches the induction step for recall."""
    half = rng.choice([8, 16, 24])
    ids = [[rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(half)] for _ in range(rows)]
    x_BT = torch.tensor([[SPECIAL_TOKENS.index("<s>"), *row, *row] for row in ids])
    logits_BTV = model(input_ids=x_BT).logits[:, half:-1]
    return F.cross_entropy(logits_BTV.transpose(1, 2), x_BT[:, half + 1 :])


def train(settings: Training) -> tuple[MistralForCausalLM, PreTrainedTokenizerFast]:
    """Return the trained model and its tokenizer; print progress to standard output."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    loss_of = ConversationLoss(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.1)
    started = time.time()
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
        later = step >= settings.later_fraction * settings.steps
        length = rng.choice(settings.later_lengths if later else settings.first_lengths)
        loss = loss_of(model, *conversation_batch(rng, tokenizer, settings, length))
        if step < settings.repeats_fraction * settings.steps:
            loss = loss + repeats_loss(rng, model, len(tokenizer), settings.repeats_per_step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step == 0:
            scores = {n: accuracy(model, tokenizer, n) for n in (64, 128, 512)}
            print(f"step {step + 1}: loss {loss:.3f}, accuracy {scores}, {time.time() - started:.0f} s", flush=True)
    return model.eval(), tokenizer


def accuracy(
    model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, tokens: int, samples: int = 64, seed: int = 7
) -> float:
    """Return the share of `samples` documents of `tokens` tokens in which the model names the right place."""
    rng = random.Random(seed)
    conversations, expected = [], []
    for _ in range(samples):
        document = make_document(rng, tokens)
        name, place = rng.choice(list(document.facts.items()))
        conversations.append([{"role": "user", "content": f"{document.text} {question(name)}"}])
        expected.append(answer(name, place))
    size = max(1, _TOKENS_PER_BATCH // tokens)
    responses: list[str] = []
    for start in range(0, samples, size):
        responses += respond(model, tokenizer, conversations[start : start + size])
    return sum(given == right for given, right in zip(responses, expected, strict=True)) / samples


def respond(
    model: MistralForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[list[dict[str, str]]],
    **sampling: float | bool,
) -> list[str]:
    """Return the model's next message in each conversation; greedy unless `sampling` holds `generate` settings."""
    inputs: Any = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    generate: Any = model.generate
    with torch.no_grad():
        output = generate(**inputs, max_new_tokens=8, **({"do_sample": False} | sampling))
    return tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def learning_rate(settings: Training, step: int) -> float:
    """Return the rate: linear warm-up, a plateau, and a linear decay to 5 % over the last part of the run."""
    decay = (settings.steps - step) / (settings.decay_fraction * settings.steps)
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup_steps, max(0.05, decay))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = train(Training(steps=arguments.steps, seed=arguments.seed))
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
