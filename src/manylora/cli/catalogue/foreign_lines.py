"""A command line of LoRAX or vLLM, read into the same as ours: options, settings, uploads, differences."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manylora.adapters.sources.upload_folders import is_repository_name
from manylora.cli.catalogue.foreign_flags import LORAX, LORAX_DEFAULTS, VLLM, VLLM_DEFAULTS, LauncherOption, Takes
from manylora.errors import ConfigInvalid

QUANTIZED = {"bitsandbytes": "int8", "eetq": "int8", "bitsandbytes-nf4": "int4", "bitsandbytes-fp4": "int4"}
"""Forms that a launcher makes of unquantised weights, with the nearest here."""
READ = ("awq", "awq_marlin", "compressed-tensors", "gptq", "gptq_marlin")
"""Forms of quantised weights that are read by what the files are."""
DEFAULT_SOURCES = ("hub", "local")
"""Sources that a server has without further settings."""
SECRET = ("--api-key", "--ngrok-authtoken")
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmMgG])")
_UNITS = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}


@dataclass(frozen=True, slots=True)
class AdapterMove:
    """One adapter: the name of its repository, and its folder or its id at a hub."""

    name: str
    place: str


@dataclass(slots=True)
class Moved:
    """A command line in our words.

    options   of `manylora serve`, such as `--port`; a setting stands by its name, `adapters.max_rank`
    differs   (their option with its value, the difference)
    unknown   words that no table has
    """

    options: dict[str, str] = field(default_factory=dict)
    uploads: list[AdapterMove] = field(default_factory=list)
    differs: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def read_line(kind: str, words: Sequence[str]) -> Moved:
    """Read the words of a launcher's command line, with a container's or a module's words before it.

    Args:    kind  `lorax` or `vllm`
    Raises:  `ConfigInvalid` for an option without its value
    """
    flags, defaults = (LORAX, LORAX_DEFAULTS) if kind == "lorax" else (VLLM, VLLM_DEFAULTS)
    moved, (variables, rest) = Moved(), _arguments(kind, list(words))
    named = {flag.variable: name for name, flag in flags.items() if flag.variable}
    for variable, value in variables.items():
        if variable in named:
            _take(moved, named[variable], flags[named[variable]], [value])
        elif variable.startswith(("LORAX_", "VLLM_")):
            moved.unknown.append(f"{variable}={value}")
    for name, values in _options(flags, rest, moved):
        _take(moved, name, flags[name], values)
    for name, value in defaults.items():
        if name not in moved.options:
            moved.options[name] = value
            moved.differs.append((f"{name} {value}", f"the default of {kind}, which is written out: ours is another"))
    if "--base" not in moved.options:
        moved.differs.append(("--base", "the command names no base; ours would be SmolLM2-135M-Instruct"))
    return moved


def read_folder(folder: Path) -> list[AdapterMove]:
    """Return the adapters in the sub-directories of a folder, or the folder itself. Raises `ConfigInvalid`."""
    if not folder.is_dir():
        raise ConfigInvalid(f"{folder} is no folder")
    here = [folder] if _is_adapter(folder) else sorted(each for each in folder.iterdir() if _is_adapter(each))
    if not here:
        raise ConfigInvalid(f"{folder} has no sub-directory with adapter_config.json")
    return [AdapterMove(_repository_name(each.resolve().name), str(each)) for each in here]


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _arguments(kind: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the environment variables before a launcher's arguments, and the arguments."""
    variables: dict[str, str] = {}
    begin = _begin(kind, words)
    for word in words[:begin]:
        if match := _ASSIGNMENT.fullmatch(word.removeprefix("--env=").removeprefix("-e")):
            variables[match[1]] = match[2]
    return variables, words[begin:]


def _begin(kind: str, words: Sequence[str]) -> int:
    """Return the number of words up to the launcher, its name included; 0 if no word names it."""
    names = ("lorax-launcher",) if kind == "lorax" else ("serve", "vllm.entrypoints.openai.api_server")
    images = "/lorax" if kind == "lorax" else "vllm-openai"
    for place, word in enumerate(words):
        last = word.rpartition("/")[2]
        is_image = images in word.partition(":")[0] and not word.startswith("-")
        if last in names or (is_image and not any(each in names for each in words[place:])):
            return place + 1
    return 0


def _options(
    flags: Mapping[str, LauncherOption], words: Sequence[str], moved: Moved
) -> Iterator[tuple[str, list[str]]]:
    """Yield the known options with their values, and note the unknown words."""
    place = 0
    while place < len(words):
        word, place = words[place], place + 1
        if not word.startswith("-"):
            if "--model" in flags and "--base" not in moved.options:
                yield "--model", [word]
            else:
                moved.unknown.append(word)
            continue
        name, mark, value = word.partition("=")
        name = name if name in flags else name.replace("_", "-")
        end = place
        while end < len(words) and not words[end].startswith("-"):
            end += 1
        flag = flags.get(name)
        if flag is None:
            moved.unknown.append(" ".join([word, *words[place:end]]))
            place = end
        elif flag.takes is Takes.NONE:
            yield name, []
        elif mark:
            yield name, [value]
        elif place == len(words) or (end == place and flag.takes is Takes.MANY):
            raise ConfigInvalid(f"{name} has no value")
        else:
            end = end if flag.takes is Takes.MANY else place + 1
            yield name, list(words[place:end])
            place = end


def _take(moved: Moved, name: str, flag: LauncherOption, values: list[str]) -> None:
    told = name if name in SECRET or not values else f"{name} {' '.join(values)}"
    if flag.differs:
        moved.differs.append((told, flag.differs))
    if not flag.ours:
        return
    if flag.ours == "uploads":
        moved.uploads += [_upload(value) for value in values]
        return
    ours, mark, fixed = flag.ours.partition("=")
    value = fixed if mark else ",".join(values)
    if ours == "--quantize":
        value = _quantized(moved, told, value)
    elif ours == "--max-model-len" and (match := _SIZE.fullmatch(value)):
        value = str(int(float(match[1]) * _UNITS[match[2]]))
    elif ours == "server.cors_allow_origins":
        value = _origins(value)
    elif ours == "adapters.preload":
        value = ",".join(each if "://" in each else f"hub://{each}" for each in values)
    elif ours == "adapters.default_source" and value == "local":
        moved.differs.append((told, "a local adapter is named below an `--adapter-root`, not by its whole path"))
    elif ours == "adapters.default_source" and value not in DEFAULT_SOURCES:
        moved.differs.append(
            (told, "`--adapter-store s3://BUCKET` has stores, and an upload is found by its name alone")
        )
        value = ""
    if value:
        moved.options[ours] = value


def _quantized(moved: Moved, told: str, form: str) -> str:
    """Return our form for a launcher's, or no form where the weights themselves are quantised already."""
    if form in ("int8", "int4", "none"):
        return form
    near = QUANTIZED.get(form, "")
    if near:
        text = f"{near} is the nearest; results are close, not equal"
    elif form in READ:
        text = "weights of this form are read as they are, without an option"
    else:
        text = "weights of this form are not read: name the unquantised base, with `--quantize int4` for its size"
    moved.differs.append((told, text))
    return near


def _origins(text: str) -> str:
    """Return the Origins of a list in JSON, as vLLM writes it, with commas between them; another text is as it is."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return ",".join(map(str, found)) if isinstance(found, list) else text


def _upload(text: str) -> AdapterMove:
    """Return the adapter of `name=path`, or of vLLM's JSON form. Raises `ConfigInvalid`."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
            name, place = found["name"], found["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigInvalid(f"--lora-modules: {text!r} is no JSON object with `name` and `path`") from error
    else:
        name, mark, place = text.partition("=")
        if not mark:
            raise ConfigInvalid(f"--lora-modules: {text!r} is not NAME=PATH")
    return AdapterMove(_repository_name(str(name)), str(place))


def _repository_name(name: str) -> str:
    """Return a name that a repository may have: other letters become `-`."""
    if is_repository_name(name):
        return name
    fit = re.sub(r"[^A-Za-z0-9._\-]", "-", name).lstrip("._-").replace("..", ".-")[:128]
    return fit if is_repository_name(fit) else "adapter"
