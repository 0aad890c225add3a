"""A YAML file as plain values, with the line of each, so that an error can name it."""

import re
from pathlib import Path
from typing import Any

from manylora.errors import ConfigInvalid
from manylora.system.failures import cause_of

MAX_BYTES = 8 << 20
MAX_VALUES = 500_000
"""Values of a file, counted as often as aliases (`*name`) repeat them."""
MAX_DEPTH = 64
_DECIMAL = re.compile(r"[+-]?(0|[1-9][0-9_]*)")
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(_TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp"))
Path_ = tuple[str | int, ...]
"""Keys and indices from the top to a value."""


class YamlFile:
    """The values of a file, with the line of each key and item, from 1 on."""

    def __init__(self, file: Path) -> None:
        """Read a file. Raises `ConfigInvalid`, naming the line."""
        import yaml

        self.file = file
        self._lines: dict[Path_, int] = {(): 1}
        self._num_values = 0
        self._loader = yaml.SafeLoader("")
        try:
            data = file.read_bytes()
            if len(data) > MAX_BYTES:
                raise ConfigInvalid(f"{file} has more than {MAX_BYTES} bytes")
            # The loader in C reads 10,000 objects in 1.1 s, the other in 3.7 s; a few builds of the library lack it.
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            text = data.decode()
            self._require_shallow(text, loader)
            node = yaml.compose(text, Loader=loader)
            self.values: Any = {} if node is None else self._values(node, ())  # of several types
        except OSError as error:
            raise ConfigInvalid(f"{file} cannot be read: {cause_of(error)}") from error
        except UnicodeDecodeError as error:
            raise ConfigInvalid(f"{file} is no UTF-8") from error
        except RecursionError as error:
            raise ConfigInvalid(f"{file} has an alias inside of the value that it repeats") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            raise ConfigInvalid(f"{file}{line}: this is no YAML: {getattr(error, 'problem', error)}") from error

    def _require_shallow(self, text: str, loader: Any) -> None:  # a class of the library
        """Raise `ConfigInvalid` for deep nesting, at which the composer in C overruns its stack."""
        import yaml

        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise self._wrong(event, f"this is nested more than {MAX_DEPTH} deep")

    def line_of(self, path: Path_) -> int:
        """Return the line of a value, or of the nearest one around it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _values(self, node: Any, path: Path_) -> Any:  # nodes and values of several types
        import yaml

        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise self._wrong(node, f"the file has more than {MAX_VALUES} values, those of repeated aliases included")
        if isinstance(node, yaml.SequenceNode):
            return [self._noted(item, (*path, index), item) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node)
        found: dict[str, Any] = {}  # as above
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong(key, "a key must be a text or a number")
            if key.tag == _TAG + "merge":
                raise self._wrong(key, "`<<` merges nothing here; repeat the fields, or the whole value by an alias")
            if key.value in found:
                raise self._wrong(key, f"`{key.value}` is given twice")
            found[key.value] = self._noted(value, (*path, key.value), key)
        return found

    def _noted(self, node: Any, path: Path_, at: Any) -> Any:  # as above
        self._lines[path] = at.start_mark.line + 1
        return self._values(node, path)

    def _scalar(self, node: Any) -> Any:  # a node of YAML, and its value
        if node.tag not in _PLAIN_TAGS:
            raise self._wrong(node, f"`{node.tag.removeprefix(_TAG)[:80]}` is no type of a value here")
        if node.tag == _TAG + "timestamp":  # JSON has none
            return node.value
        if node.tag == _TAG + "int" and not _DECIMAL.fullmatch(node.value):
            # YAML 1.1 reads 010 as 8 and 1:30 as 90.
            raise self._wrong(node, f"`{node.value[:80]}` is no whole number in decimal digits; a text has quotes")
        try:
            value = self._loader.construct_object(node)
        except (ValueError, LookupError, ArithmeticError) as error:
            raise self._wrong(node, f"`{node.value[:80]}` is no value of its type") from error
        if isinstance(value, float) and not abs(value) < float("inf"):
            raise self._wrong(node, f"`{node.value[:80]}` is no finite number")
        return value

    def _wrong(self, node: Any, message: str) -> ConfigInvalid:  # a node of YAML
        return ConfigInvalid(f"{self.file}, line {node.start_mark.line + 1}: {message}")
