"""Tiny tokenizers with the special tokens and the chat templates of known families."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tiny_tokenizers import byte_level_bpe

LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set c = bos_token + c %}"
    "{% endif %}{{ c }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
THINKING = (  # keeps the reasoning of the last assistant turn only, and always writes its tags
    "{% for m in messages %}{% set c = m['content'] %}{% set r = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set r = c.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + r.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GPT_OSS = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
    "{{ '<|message|>' + m['content'] }}"
    "{{ '<|return|>' if loop.last and m['role'] == 'assistant' else '<|end|>' }}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """Special tokens (named ones by their attribute), the template, and the roles expected."""

    named: Mapping[str, str]
    others: tuple[str, ...]
    template: str | None
    roles: Mapping[str, str | None]
    headers: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


FAMILIES = {
    "llama3-base": Family(
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        None,
        {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "eot": "<|eot_id|>", "pad": None},
        (("<|start_header_id|>",), ("<|end_header_id|>",)),
    ),
    "llama3-instruct": Family(
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        LLAMA3,
        {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "eot": "<|eot_id|>"},
        (("<|start_header_id|>",), ("<|end_header_id|>",)),
    ),
    "qwen": Family(
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ("<|im_start|>",),
        CHATML,
        {"bos": None, "eos": "<|endoftext|>", "eot": "<|im_end|>", "pad": "<|endoftext|>"},
        (("<|im_start|>",), ()),
    ),
    "smollm2": Family(
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        (),
        DEFAULT_SYSTEM,
        {
            "bos": None,
            "eos": "<|endoftext|>",
            "eot": "<|im_end|>",
            "pad": "<|im_end|>",
            "unk": "<|endoftext|>",
        },
        (("<|im_start|>",), ()),
    ),
    "gemma": Family(
        {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>"},
        ("<eos>", "<start_of_turn>"),
        GEMMA,
        {"bos": "<bos>", "eos": "<eos>", "eot": "<end_of_turn>", "pad": "<pad>"},
        (("<start_of_turn>",), ()),
    ),
    "gpt-oss": Family(
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"),
        GPT_OSS,
        {
            "bos": "<|startoftext|>",
            "eos": "<|endoftext|>",
            "eot": "<|return|>",
            "pad": "<|endoftext|>",
        },
        (("<|start|>",), ("<|message|>",)),
    ),
    "llama2": Family(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        (),
        LLAMA2,
        {"bos": "<s>", "eos": "</s>", "eot": "</s>", "unk": "<unk>"},
    ),
    "phi3": Family(
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        PHI3,
        {"bos": "<s>", "eos": "<|endoftext|>", "eot": "<|end|>"},
        (("<|assistant|>", "<|user|>", "<|system|>"), ()),
    ),
    "gpt2": Family(
        {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")},
        (),
        None,
        {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "eot": "<|endoftext|>", "pad": None},
    ),
    "own names": Family(
        {"bos_token": "<A>", "eos_token": "<Z>"},
        ("<T>", "<H>", "<U>"),
        "{{ bos_token }}{% for m in messages %}<H>{{ m.role }}<U>{{ m.content }}<T>{% endfor %}",
        {"bos": "<A>", "eos": "<Z>", "eot": "<T>"},
        (("<H>",), ("<U>",)),
    ),
}


def family_tokenizer(name: str, **changes) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens and the template of a family."""
    family = FAMILIES[name]
    extra = {f"extra_{i}": token for i, token in enumerate(family.others)}
    specials = {**family.named, **extra}
    return byte_level_bpe(specials=specials, chat_template=family.template, **changes)
