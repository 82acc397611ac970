"""Which engine renders a model's chat template, on the real libllama: Jinja, the built-in list, or none with a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld import llm
from modeld.errors import InvalidRequest
from modeld.llm.backend import backend
from modeld.llm.chat import ChatTemplate
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ChatMessage, ModelSpec
from scripts.demo.chat import CHAT_TEMPLATE

CALC = Path(__file__).resolve().parents[2] / "models" / "demo-calc.gguf"
TALK = [ChatMessage("system", "Be brief."), ChatMessage("user", "Hi")]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment without the extra: the import fails."""
    monkeypatch.setitem(sys.modules, "modeld.llm.jinja", None)
    monkeypatch.delattr(llm, "jinja", raising=False)


@pytest.fixture
def load() -> Iterator[Callable[[str | None], LlamaRuntime]]:
    loaded: list[LlamaRuntime] = []

    def load(template: str | None) -> LlamaRuntime:
        spec = ModelSpec(id="calc", path=CALC, n_ctx=512, n_parallel=1, chat_template=template)
        loaded.append(LlamaRuntime(spec, lambda step, pct: True))
        return loaded[-1]

    yield load
    for runtime in loaded:
        runtime.close()


def template(source: str | None, *, bos: str = "<s>", adds_bos: bool = True) -> ChatTemplate:
    return ChatTemplate(backend().lib, source, "m", bos=bos, eos="</s>", adds_bos=adds_bos)


def test_a_models_own_template_is_rendered_by_jinja(load: Callable[[str | None], LlamaRuntime]) -> None:
    runtime = load(None)
    assert runtime.describe().chat_template_engine == "jinja"
    assert runtime.render_chat(TALK).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_of_the_configuration_may_be_jinja_or_a_name() -> None:
    assert template(PLAIN).engine == "jinja"
    assert template(PLAIN).render(TALK) == "system: Be brief.\nuser: Hi\n"
    assert template("chatml").engine == "builtin"
    assert template("chatml").render(TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.usefixtures("without_jinja")
def test_without_the_extra_the_built_in_list_serves(load: Callable[[str | None], LlamaRuntime]) -> None:
    assert load(None).describe().chat_template_engine == "builtin"
    odd = template(PLAIN)
    assert odd.engine is None
    with pytest.raises(InvalidRequest, match=r"not in llama\.cpp's list, and jinja2 is not installed \(the extra"):
        odd.render(TALK)


def test_a_template_that_does_not_compile_falls_back_to_the_list_that_knows_it() -> None:
    assert template(CHAT_TEMPLATE + "{% broken").engine == "builtin"
    odd = template(PLAIN + "{% broken")
    assert odd.engine is None
    with pytest.raises(InvalidRequest, match="Jinja cannot use it: it does not compile: TemplateSyntaxError"):
        odd.render(TALK)


@pytest.mark.parametrize(
    "source", ["{{ 1 }}", "{% if 0 %}{{ messages }}{% endif %}", "{{ ''.__class__ }}", "{{ 'a' * 10 ** 9 }}"]
)
def test_a_template_that_does_not_show_what_the_user_says_is_not_used(source: str) -> None:
    odd = template(source)
    assert odd.engine is None
    with pytest.raises(InvalidRequest, match="no chat template that can be used"):
        odd.render(TALK)


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(InvalidRequest, match="brings none"):
        template(None).render(TALK)
    with pytest.raises(InvalidRequest, match="'no-such-name' is no Jinja template"):
        template("no-such-name").render(TALK)


def test_a_template_that_wants_a_system_message_is_used_and_its_objection_passed_on() -> None:
    picky = template("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + PLAIN)
    assert picky.engine == "jinja"
    assert picky.render(TALK) == "system: Be brief.\nuser: Hi\n"
    with pytest.raises(InvalidRequest, match="system first"):
        picky.render(TALK[1:])


def test_a_template_that_fails_on_some_messages_is_a_clear_error() -> None:
    fragile = template(PLAIN + "{% if messages | length > 1 %}{{ messages.append(1) }}{% endif %}")
    with pytest.raises(InvalidRequest, match="the chat template of model 'm' failed: SecurityError"):
        fragile.render(TALK)


def test_a_template_that_takes_content_as_parts_gets_parts() -> None:
    parts = template("{% for m in messages %}{% for part in m.content %}{{ part.text }};{% endfor %}{% endfor %}")
    assert parts.render(TALK) == "Be brief.;Hi;"


@pytest.mark.parametrize("source", [PLAIN, "{{ bos_token }}" + PLAIN, "{{- bos_token -}}\n" + PLAIN])
def test_bos_comes_once(load: Callable[[str | None], LlamaRuntime], source: str) -> None:
    runtime = load(source)
    tokens = runtime.tokenize(runtime.render_chat(TALK), add_special=True, parse_special=True)
    (bos,) = runtime.tokenize("", add_special=True, parse_special=False)
    assert tokens[0] == bos
    assert tokens.count(bos) == 1


def test_bos_stays_where_the_tokenizer_does_not_add_it() -> None:
    assert template("{{ bos_token }}" + PLAIN, adds_bos=False).render(TALK).startswith("<s>system")


def test_a_nul_in_a_message_is_refused_where_c_would_cut_it() -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        template("chatml").render([ChatMessage("user", "a\0b")])
    assert "a\0b" in template(PLAIN).render([ChatMessage("user", "a\0b")])


def test_jinja2_is_imported_for_a_template_only() -> None:
    program = "import sys, modeld.app, modeld.llm.runtime, modeld.engine.runner; sys.exit('jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=CALC.parents[1], check=True)


MESSAGES = st.lists(
    st.builds(
        ChatMessage,
        st.sampled_from(["system", "user", "assistant"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(MESSAGES)
def test_jinja_and_the_list_make_the_same_of_the_demo_models_template(messages: list[ChatMessage]) -> None:
    by_jinja, by_list = template(CHAT_TEMPLATE), template("chatml")
    assert (by_jinja.engine, by_list.engine) == ("jinja", "builtin")
    assert by_jinja.render(messages) == by_list.render(messages)
