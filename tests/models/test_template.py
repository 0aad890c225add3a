"""Chat templates: what real ones rely on works, and none can run or grow for ever or reach out of its sandbox."""

import datetime
import re
from collections.abc import Iterator

import pytest

from manylora.clock import ManualClock
from manylora.errors import TemplateFailed
from manylora.models.text import template
from manylora.models.text.template import MAX_LOOP_TURNS, ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def render(source: str, **variables: object) -> str:
    return ChatTemplate(source).render({"messages": MESSAGES, **variables})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m['content'] ~ ' ' }}{% endfor %}", "user: hi assistant: yes "),
        ("{%- for m in messages -%}\n  {{ m.role }}\n{%- endfor %}", "userassistant"),
        ("{% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}", "1"),
        ("{{ {'a': '<é>', 'b': [1]} | tojson }}", '{"a": "<é>", "b": [1]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% generation %}reply{% endgeneration %}", "reply"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('ab') }}", "abab"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}", "a1"),
        ("{{ '%02d' % 7 }}|{{ 'x'|center(3) }}|{{ '{:>3}'.format(1) }}|{{ 'a\nb'|indent(2) }}", "07| x |  1|a\n  b"),
        ("{{ messages | map(attribute='role') | join(',') }}", "user,assistant"),
        ("{{ missing is defined }}", "False"),
    ],
)
def test_what_real_templates_use_works(source: str, expected: str) -> None:
    assert render(source) == expected


def test_the_date_can_be_asked_for() -> None:
    years = [datetime.datetime.now().astimezone().year]
    found = render("{{ strftime_now('%Y') }}")
    years.append(datetime.datetime.now().astimezone().year)  # it may have begun meanwhile
    assert found in map(str, years)


def test_the_templates_own_refusal_reaches_the_caller() -> None:
    with pytest.raises(TemplateFailed, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.parameter == "messages"


HOSTILE = {
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "huge range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "multiplied text": "{{ 'a' * big }}",
    "multiplied list": "{{ ([1] * big) | length }}",
    "power": "{{ big ** big }}",
    "doubling by ~": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "wide %": "{{ '%0999999999d' % 1 }}",
    "wide % by argument": "{{ '%*d' % (999999999, 1) }}",
    "wide format": "{{ '{:>999999999}'.format(1) }}",
    "wide format by argument": "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "wide center": "{{ 'x' | center(999999999) }}",
    "wide indent": "{{ 'x\nx' | indent(999999999) }}",
    "wide ljust": "{{ 'x'.ljust(999999999) }}",
    "long output": "{% for i in range(5000) %}{{ 'x' * 5000 }}{% endfor %}",
    "class walk": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "undefined": "{{ a.b.c }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_kind_of_error(name: str) -> None:
    with pytest.raises(TemplateFailed):
        render(HOSTILE[name], big=10**9)


def test_a_template_that_does_not_parse_is_one_too() -> None:
    with pytest.raises(TemplateFailed, match="does not compile"):
        ChatTemplate("{% for i in %}")


def test_messages_are_data_not_templates() -> None:
    assert render("{{ messages[0].content }}", messages=[{"content": "{{ 7 * 7 }}"}]) == "{{ 7 * 7 }}"


class _Hurrying(ManualClock):
    """A clock on which every look takes a second."""

    def monotonic_s(self) -> float:
        self.advance(1.0)
        return super().monotonic_s()


def test_a_slow_template_is_stopped_by_the_clock() -> None:
    template = ChatTemplate("{% for i in range(turns) %}{% endfor %}", clock=_Hurrying())
    with pytest.raises(TemplateFailed, match="seconds"):
        template.render({"turns": 5000})
    assert MAX_LOOP_TURNS > 5000


def test_the_mark_of_the_last_message_is_found_in_one_pass_over_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = list[int]()

    class Counting:
        def finditer(self, text: str) -> Iterator[re.Match[str]]:
            passes.append(len(text))
            return marks.finditer(text)

    marks = template._MARKS
    monkeypatch.setattr(template, "_MARKS", Counting())
    for content in (
        "plain",
        "CONTINUE_FINAL_MESSAGE",
        "CONTINUE_FINAL_MESSAGE" + "_" * 5000,
        "aCONTINUE_FINAL_MESSAGE__b",
    ):
        mark = template._mark(content)
        assert mark not in content
        (opened,) = template.open_last([{"role": "assistant", "content": content}])
        assert template.cut_last(f"<s>{opened['content']}</s>", content) == f"<s>{content}"
    assert len(passes) == 3 * 4


def test_the_check_of_a_format_reads_each_character_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()

    class Counting:
        def search(self, text: str) -> re.Match[str] | None:
            read.append(len(text))
            return wide.search(text)

    wide = template._WIDE
    monkeypatch.setattr(template, "_WIDE", Counting())
    content = ("{" + ":" * 500 + "}") * 100
    assert render("{{ text | indent(2) }}", text=content) == content
    assert sum(read) <= 2 * len(content)
    for field in ("{:12345}", "{a:>12345}", "{:{}}", "{0[{"):
        with pytest.raises(TemplateFailed, match="width of over four digits"):
            render("{{ text | indent(2) }}", text=field)
