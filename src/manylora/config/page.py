"""`docs/settings.md`, written from the declarations: `python -m manylora.config.page > docs/settings.md`."""

import sys

from manylora.config.declaration import Declaration, Setting
from manylora.config.settings import Config, declarations, leaves

HEAD = """\
# Settings

Every setting has a default. Later sources win: the defaults, a TOML file (`manylora serve --config FILE`), the
environment, flags. In the file a group is a table (`[server]`, `port = 9000`); in the environment the name is
`MANYLORA_<GROUP>_<SETTING>` (`MANYLORA_SERVER_PORT=9000`); on the command line `--set server.port=9000`. In the
environment and on the command line `:` separates the paths of a list, and commas or spaces separate other items.
An unknown name, a wrong type or a value out of bounds stops the start with a message that names the setting. A renamed
setting keeps its former name for one release ([upgrading](upgrading.md)).

`MANYLORA_KEY` and `MANYLORA_URL` are not settings: they are the key and the server of the verbs that talk to a running
server. The start ignores variables that Kubernetes makes for a Service named `manylora…` (`MANYLORA_SERVICE_HOST`,
`MANYLORA_SERVER_PORT=tcp://…`), and lists them in one line.

**0 means "derived at start"** where a text says so; the start prints the derived value.

`make pages` writes this page from the declarations in `src/manylora/config/groups`.
"""


def settings_page() -> str:
    """Return the page: a heading for each group and each setting, with its type, default, bounds and text."""
    defaults, parts, last = leaves(Config()), [HEAD], ""
    for key, declared in declarations().items():
        group = key.partition(".")[0]
        if group != last:
            parts.append(f"## {group}\n")
            last = group
        parts.append(f"### `{key}`\n\n{_facts(defaults[key], declared)}\n\n{declared.text}\n")
    return "\n".join(parts)


def _facts(default: Setting, declared: Declaration) -> str:
    kind = "list of texts" if isinstance(default, tuple) else {"str": "text"}.get(type(default).__name__, "")
    facts = [kind or {"int": "integer", "float": "number", "bool": "`true` or `false`"}[type(default).__name__]]
    if declared.choices:
        facts = [f"one of {', '.join(f'`{each}`' for each in declared.choices)}"]
    facts.append(f"default {_shown(default)}")
    if declared.low is not None:
        facts.append(f"at least {declared.low:g}")
    if declared.high is not None:
        facts.append(f"at most {declared.high:,.0f}")
    return f"*{', '.join(facts)}*"


def _shown(value: Setting) -> str:
    if isinstance(value, tuple):
        return " ".join(f"`{each}`" for each in value) or "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return f"{value:,}"
    return f"`{value}`" if value else "empty"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
