"""The demo's tokenizer: one token per word, one special token per template marker, Mistral-Instruct's template."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .corpus import STOP, all_words

UNKNOWN, BOS, EOS, USER_OPEN, USER_CLOSE = "<unk>", "<s>", "</s>", "[INST]", "[/INST]"
SPECIAL_TOKENS = (UNKNOWN, BOS, EOS, USER_OPEN, USER_CLOSE)

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer over the words of the corpus; spaces and line breaks separate words and are no tokens."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *all_words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(STOP, "isolated")]
    )
    # No word carries the continuation mark: this decoder is here for joining words by spaces and stops without.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=UNKNOWN,
        additional_special_tokens=[USER_OPEN, USER_CLOSE],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
