"""Three commands to try a server with, ready to paste into a shell: curl, the openai package, lorax-client."""

import json
from collections.abc import Sequence

from manylora.config.environment import KEY_VARIABLE, URL_VARIABLE
from manylora.models.text.tokenizer import Tokenizer

DEMO_ADAPTER = "support-triage"
TICKET = "Where is my parcel?"


def examples(
    url: str, *, base: str, adapters: Sequence[str], tokenizer: Tokenizer, is_key_needed: bool = False
) -> dict[str, str]:
    """Return the commands by title. They ask the triage demo if it exists, else the first adapter, else the base.

    Where a key is needed they read it from `MANYLORA_KEY`, so that no shell keeps it in its history.

    Adapters are usually trained on the base's chat template, so each command uses it if there is one. The lorax package
    sends text unchanged, so its command has the rendered template, without the begin token that the server adds.
    """
    adapter = DEMO_ADAPTER if DEMO_ADAPTER in adapters else next(iter(adapters), None)
    chats = tokenizer.has_chat_template
    messages = [{"role": "user", "content": TICKET}]
    prompt = _without_begin(tokenizer.apply_chat_template(messages), tokenizer) if chats else TICKET
    parameters: dict[str, object] = {} if adapter is None else {"adapter_id": adapter}
    parameters |= {"apply_chat_template": True} if chats else {}
    body = json.dumps({"inputs": TICKET, "parameters": {**parameters, "max_new_tokens": 32}})
    model = json.dumps(adapter or base)
    asked = f"messages={json.dumps(messages)}" if chats else f"prompt={json.dumps(TICKET)}"
    route, answer = ("chat.completions", "message.content") if chats else ("completions", "text")
    keyword = "" if adapter is None else f", adapter_id={json.dumps(adapter)}"
    shown = f""" -H "Authorization: Bearer ${KEY_VARIABLE}\"""" if is_key_needed else ""
    import_os = "import os\n" if is_key_needed else ""
    api_key = f'os.environ["{KEY_VARIABLE}"]' if is_key_needed else '"none"'
    bearer = f'headers={{"Authorization": "Bearer " + os.environ["{KEY_VARIABLE}"]}}'
    client = f'Client("{url}", {bearer})' if is_key_needed else f'Client("{url}")'
    return {
        "curl": f"""curl -s {url}/generate -H 'Content-Type: application/json'{shown} \\
  -d {_quoted(body)}""",
        "the openai package (pip install openai)": f"""python - <<'END'
{import_os}from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key={api_key})
reply = client.{route}.create(model={model}, temperature=0, max_tokens=32,
    {asked})
print(reply.choices[0].{answer})
END""",
        "lorax-client (pip install lorax-client)": f"""python - <<'END'
{import_os}from lorax import Client
prompt = {json.dumps(prompt)}
print({client}.generate(prompt{keyword}, max_new_tokens=32).generated_text)
END""",
    }


def key_commands(url: str, base: str) -> dict[str, str]:
    """Return the commands that precede the others where a key is needed: the key, a price, a customer, the usage."""
    return {
        "in another terminal: the operator's key, or a customer's": f"export {KEY_VARIABLE}=pb_… {URL_VARIABLE}={url}",
        "with the operator's: a price (dollars per 1,000 tokens), a customer with a key, what is used": (
            f"manylora prices set {_quoted(base)} --input 0.5 --output 1.5\n"
            "manylora tenants create acme\n"
            "manylora usage"
        ),
    }


def _without_begin(prompt: str, tokenizer: Tokenizer) -> str:
    """Return a prompt without its begin token, if the tokenizer puts that token before every text."""
    begin = tokenizer.named_tokens.get("bos_token", "")
    is_added = bool(begin) and tokenizer.encode("")[:1] == [tokenizer.token_id(begin)]
    return prompt.removeprefix(begin) if is_added else prompt


def _quoted(text: str) -> str:
    """Return a text as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
