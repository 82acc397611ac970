"""Chat templates in Jinja: what Hugging Face gives them, and what hostile ones do not get."""

from __future__ import annotations

import time

import pytest

from modeld.errors import InvalidRequest
from modeld.llm.jinja import MAX_RENDER_S, MAX_TEMPLATE_CHARS, TemplateProblem, compile_template, render

# Our own texts, in the manner of the families they are named after.
CHATML = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """\
{%- set ns = namespace(system='', user=true) %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != ns.user %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set ns.user = not ns.user %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (ns.system if loop.last else '') + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

HOARD = "{% set ns = namespace(s=[]) %}{% set a = 'x' * 99999 %}"
TALK = [("user", "Hi"), ("assistant", " Yes? "), ("user", "Go")]
SYSTEM = ("system", "Be brief.")


def prompt(template: str, talk: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in talk]
    variables = {"messages": messages, "tools": None, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    return render(compile_template(template), variables)


@pytest.mark.parametrize(
    ("template", "talk", "expected"),
    [
        (CHATML, [TALK[0]], "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (
            CHATML,
            [SYSTEM, TALK[0]],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            TALK,
            (
                "<s><|start_header_id|>system<|end_header_id|>\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nGo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (
            LLAMA3,
            [SYSTEM, TALK[0]],
            (
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
                "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (MISTRAL, TALK, "<s>[INST] Hi [/INST]  Yes? </s>[INST] Go [/INST]"),
        (MISTRAL, [SYSTEM, *TALK], "<s>[INST] Hi [/INST]  Yes? </s>[INST] Be brief.\n\nGo [/INST]"),
        (
            GEMMA,
            TALK,
            (
                "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
                "<start_of_turn>user\nGo<end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
    ],
)
def test_templates_in_the_manner_of_the_families(template: str, talk: list[tuple[str, str]], expected: str) -> None:
    assert prompt(template, talk) == expected


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [(GEMMA, [SYSTEM, TALK[0]], "no system role here"), (MISTRAL, [TALK[0], TALK[0]], "roles must alternate")],
)
def test_what_a_template_objects_to_is_the_clients_to_know(template: str, talk: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        prompt(template, talk)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{{ strftime_now('%Y') }}", time.strftime("%Y")),
        ("{% for c in 'ab' %}{{ loop.index }}{{ '!' if loop.last }}{% endfor %}", "12!"),
        ("{% for c in 'abc' %}{{ c }}{% if c == 'b' %}{% break %}{% endif %}{% endfor %}", "ab"),
        ("{% for c in 'abc' %}{% if c == 'b' %}{% continue %}{% endif %}{{ c }}{{ loop.length }}{% endfor %}", "a3c3"),
        ("{% generation %}a{{ 'b' }}{% endgeneration %}", "ab"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') ~ m(2) }}", "[a][2]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x }}", "a1"),
        ("{{ ['a', 1] | join(', ') }}{{ '-'.join(['a', 'b']) }}", "a, 1a-b"),
        ("{{ [{'n': 1}, {'n': 2}] | join('+', attribute='n') }}", "1+2"),
        ("{{ 'aXbX' | replace('X', '.', 1) }}{{ 'aXbX'.replace('X', '') }}", "a.bXab"),
        ("{% for x in 'ab' %}{{ (x ~ 'X').replace('X', '') }}{{ ','.join([x, x]) }}{% endfor %}", "aa,abb,b"),
        ("{% block b %}{{ 'aX'.replace('X', '') }}{% endblock %}", "a"),
        ("{{ 'a\n\nb' | indent(2) }}|{{ 'a' | indent(1, true) }}", "a\n\n  b| a"),
        ("{{ nothing }}{{ none }}{{ true }}{{ 1 + 2 * 3 ** 2 % 5 }}", "NoneTrue4"),
        ("{% if tools is defined and tools is not none %}x{% endif %}{{ 'a' if messages is iterable }}", "a"),
        ("  {% if true %}\n<b>\n  {% endif %}\n", "<b>\n"),
    ],
)  # fmt: skip
def test_what_templates_are_given(template: str, expected: str) -> None:
    assert prompt(template, TALK) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ self.__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ lipsum(n=9999) }}",
    ],
)
def test_templates_do_not_reach_out_of_their_sandbox(template: str) -> None:
    with pytest.raises(TemplateProblem):
        prompt(template, TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(10 ** 9) }}",
        "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% set r = range(9999) %}{% for a in r if a %}{% for b in r if b > 5 %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s, [1] * 99999] %}{% endfor %}",
        "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s, 'x' * 99999] %}{% endfor %}",
        HOARD + "{% for i in range(999) %}{% set ns.s = [ns.s, a[i:]] %}{% endfor %}",
        HOARD + "{% for i in range(999) %}{% set ns.s = [ns.s, a | list] %}{% endfor %}",
        HOARD + "{% for i in range(999) %}{% set ns.s = [ns.s, a.upper()] %}{% endfor %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x'.center(10 ** 10) }}",
        "{{ 'x' | indent(10 ** 10, true) }}",
        "{{ [1] | tojson(indent=10 ** 10) }}",
        "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{{ ('a' * 9999).replace('a', 'b' * 99999) }}",
        "{{ 'a' * 9999 | replace('a', 'b' * 99999) }}",
        "{{ range(9999) | join('b' * 99999) }}",
        "{{ ('b' * 99999).join(range(9999) | map('string')) }}",
        "{% for i in range(9999) %}" + "y" * 9999 + "{% endfor %}",
        "{% set x %}{% for i in range(9999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
        "{{ strftime_now('%' * 9999) }}",
        "{{ 1 // 0 }}",
    ],
)  # fmt: skip
def test_templates_end_in_time_and_memory(template: str) -> None:
    compiled = compile_template(template)  # nothing is computed here, however constant it is
    began = time.monotonic()
    with pytest.raises(TemplateProblem):
        render(compiled, {"messages": []})
    assert time.monotonic() - began < MAX_RENDER_S + 5


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ x | no_such_filter }}",
        "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
        "x" * (MAX_TEMPLATE_CHARS + 1),
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    ],
)  # fmt: skip
def test_templates_that_do_not_compile_say_why(template: str) -> None:
    with pytest.raises(TemplateProblem, match=r"does not compile|characters"):
        compile_template(template)


def test_a_long_conversation_is_rendered_within_the_bounds() -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "x"} for i in range(30_000)]  # 1 MiB of JSON
    text = render(
        compile_template(LLAMA3), {"messages": messages, "bos_token": "", "eos_token": "", "add_generation_prompt": True}
    )
    assert text.count("<|eot_id|>") == 30_001
