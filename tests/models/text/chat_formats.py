"""The prompt formats of the served families: a chat template of each, and the same format as a plain function.

The templates use what the published ones use (string methods, `raise_exception`, `loop.index0`, blocks that trim).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manylora.models.fetch.known_bases import KNOWN_BASES

Messages = Sequence[dict[str, str]]
ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
_ALTERNATES = (
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('" + ALTERNATE + "') }}{% endif %}"
)
_SPLIT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set first = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set first = false %}{% endif %}"
)
LLAMA_2 = (
    _SPLIT_SYSTEM + "{% for turn in turns %}" + _ALTERNATES + "{% if loop.index0 == 0 and first != false %}"
    "{% set text = '<<SYS>>\\n' + first + '\\n<</SYS>>\\n\\n' + turn['content'] %}"
    "{% else %}{% set text = turn['content'] %}{% endif %}"
    "{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% elif turn['role'] == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CODE_LLAMA_70B = (
    "{% set offset = 1 if messages[0]['role'] == 'system' else 0 %}{% for turn in messages %}"
    "{% if (turn['role'] == 'user') != ((loop.index0 + offset) % 2 == 0) %}"
    "{{ raise_exception('" + ALTERNATE + "') }}{% endif %}{% if loop.index0 == 0 %}{{ '<s>' }}{% endif %}"
    "{% set text = 'Source: ' + turn['role'] + '\\n\\n ' + turn['content'] | trim %}{{ text + ' <step> ' }}{% endfor %}"
    "{{ 'Source: assistant\\nDestination: user\\n\\n ' }}"
)
MISTRAL_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for turn in messages %}" + _ALTERNATES + "{% if turn['role'] == 'user' %}"
    "{{ '[INST] ' + turn['content'] + ' [/INST]' }}{% elif turn['role'] == 'assistant' %}"
    "{{ turn['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set first = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("after the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- if turn["role"] == "user" %}
        {%- if loop.first and first is defined %}
            {{- "[INST] " + first + "\\n\\n" + turn["content"] + " [/INST]" }}
        {%- else %}
            {{- "[INST] " + turn["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif turn["role"] == "assistant" %}
        {{- " " + turn["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
ZEPHYR = """{% for turn in messages %}
{% if turn['role'] == 'user' %}
{{ '<|user|>\n' + turn['content'] + eos_token }}
{% elif turn['role'] == 'system' %}
{{ '<|system|>\n' + turn['content'] + eos_token }}
{% elif turn['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + turn['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
_SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML = (
    "{% for turn in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + _SMOL + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{- bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}"
    "{% for turn in messages %}{% if tools is not none and loop.first %}{{ raise_exception('no tools') }}{% endif %}"
    "{{- '<|start_header_id|>' ~ turn['role'] ~ '<|end_header_id|>\n\n' ~ (turn['content'] | trim) ~ '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_3 = """{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for turn in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and turn.role == "user" and turn.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set text = turn.content if turn.content is string else '' %}
    {%- if turn.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in text %}
            {%- set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + text }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + turn.role + '\n' + text + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""


def _split(messages: Messages) -> tuple[str | None, Messages]:
    return (messages[0]["content"], messages[1:]) if messages[0]["role"] == "system" else (None, messages)


def llama_2(messages: Messages, *, prompting: bool) -> str:
    """Llama 2 chat and Code Llama 13b, 34b: the system message in the first user turn, each turn with its own `<s>`."""
    system, turns = _split(messages)
    text = ""
    for index, turn in enumerate(turns):
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if index == 0 and system is not None else ""
        content = (head + turn["content"]).strip()
        text += f"<s>[INST] {content} [/INST]" if turn["role"] == "user" else f" {content} </s>"
    return text


def code_llama_70b(messages: Messages, *, prompting: bool) -> str:
    """Code Llama 70b: a `Source:` line for each turn, which `<step>` ends."""
    turns = (f"Source: {turn['role']}\n\n {turn['content'].strip()} <step> " for turn in messages)
    return f"<s>{''.join(turns)}Source: assistant\nDestination: user\n\n "


def mistral(messages: Messages, *, prompting: bool) -> str:
    """Mistral and Mixtral instruct v0.1: one `<s>`, and the system message before the first user text."""
    system, turns = _split(messages)
    text = "<s>"
    for index, turn in enumerate(turns):
        head = f"{system}\n\n" if index == 0 and system is not None else ""
        text += f"[INST] {head}{turn['content']} [/INST]" if turn["role"] == "user" else f" {turn['content']}</s>"
    return text


def mistral_without_system(messages: Messages, *, prompting: bool) -> str:
    return "<s>" + "".join(
        f"[INST] {turn['content']} [/INST]" if turn["role"] == "user" else f"{turn['content']}</s>" for turn in messages
    )


def zephyr(messages: Messages, *, prompting: bool) -> str:
    turns = "".join(f"<|{turn['role']}|>\n{turn['content']}</s>\n" for turn in messages)
    return turns + ("<|assistant|>\n" if prompting else "")


def chatml(messages: Messages, *, prompting: bool) -> str:
    """ChatML, with the system message of SmolLM2 where none leads."""
    default = [] if messages[0]["role"] == "system" else [{"role": "system", "content": _SMOL}]
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in (*default, *messages))
    return turns + ("<|im_start|>assistant\n" if prompting else "")


def llama_3(messages: Messages, *, prompting: bool) -> str:
    turns = (f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n{turn['content'].strip()}" for turn in messages)
    opened = "<|start_header_id|>assistant<|end_header_id|>\n\n" if prompting else ""
    return f"<|begin_of_text|>{''.join(f'{turn}<|eot_id|>' for turn in turns)}{opened}"


def qwen_3(messages: Messages, *, prompting: bool) -> str:
    """ChatML; the thoughts of replies before the last question are left out, and a last reply has a part for them."""
    asked = max((index for index, turn in enumerate(messages) if turn["role"] == "user"), default=len(messages) - 1)
    text = ""
    for index, turn in enumerate(messages):
        content, thought = turn["content"], ""
        if turn["role"] == "assistant" and "</think>" in content:
            thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
            content = content.split("</think>")[-1].lstrip("\n")
        if turn["role"] == "assistant" and index > asked and (thought or index == len(messages) - 1):
            stripped = thought.strip("\n")
            content = f"<think>\n{stripped}\n</think>\n\n" + content.lstrip("\n")
        text += f"<|im_start|>{turn['role']}\n{content}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if prompting else "")


@dataclass(frozen=True)
class ChatFormat:
    """A format: its template, the same text made by hand, and the properties of its template.

    refuses_order  the template raises for roles that do not alternate
    has_system     a system message may lead
    """

    template: str
    text: Callable[..., str]
    bos: str = "<s>"
    eos: str = "</s>"
    refuses_order: bool = True
    has_system: bool = True


FORMATS = {
    "llama-2": ChatFormat(LLAMA_2, llama_2),
    "code-llama-70b": ChatFormat(CODE_LLAMA_70B, code_llama_70b),
    "mistral": ChatFormat(MISTRAL, mistral),
    "mistral-without-system": ChatFormat(MISTRAL_WITHOUT_SYSTEM, mistral_without_system, has_system=False),
    "zephyr": ChatFormat(ZEPHYR, zephyr, refuses_order=False),
    "chatml": ChatFormat(CHATML, chatml, bos="<|im_start|>", eos="<|im_end|>", refuses_order=False),
    "llama-3": ChatFormat(LLAMA_3, llama_3, bos="<|begin_of_text|>", eos="<|eot_id|>", refuses_order=False),
    "qwen-3": ChatFormat(QWEN_3, qwen_3, bos="<|im_start|>", eos="<|im_end|>", refuses_order=False),
}

KNOWN: dict[str, str | None] = {base.name: base.chat_format for base in KNOWN_BASES}
"""The format of each base of the catalog; None: its files have no chat template."""
