"""Chat templates from outside: who renders them is shown, and a template that nobody can render is a clear 400."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import MODELS, ROOT, Daemon, demo_config, kept_beside

OWN = (
    "{{ bos_token }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    "<|im_start|>assistant{{ '\\n' }}"
)
MORE = "".join(
    f"  - {{id: {model_id}, path: {MODELS}/demo-stories.gguf, n_ctx: 512, n_parallel: 1, "
    f"chat_template: {json.dumps(template)}}}\n"
    for model_id, template in (("own", OWN), ("named", "chatml"), ("odd", "{{ ''.__class__.__mro__ }}"))
)
MESSAGES = [{"role": "user", "content": "Tell me a story."}]
ASK = {"messages": MESSAGES, "temperature": 0, "max_tokens": 20}


def shown(daemon: Daemon) -> dict[str, str | None]:
    return {model["id"]: model["chat_template"] for model in daemon.get("/models")["models"]}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    # No cells are kept: the same file under another entry would take over what the first one computed.
    config = demo_config(tmp_path_factory.mktemp("templates"), MORE + "switching: {kv_keep_bytes: 0}\n")
    with Daemon(config) as daemon:
        daemon.wait_ready()
        yield daemon


def test_the_engine_is_shown_and_all_ways_to_chatml_give_the_same_answer(templates: Daemon) -> None:
    answers = []
    for model_id, engine in (("demo-stories", "jinja"), ("own", "jinja"), ("named", "builtin")):
        assert templates.switch_and_wait(model_id)["state"] == "succeeded"
        assert {id_ for id_, value in shown(templates).items() if value is not None} == {model_id}
        assert shown(templates)[model_id] == engine
        assert templates.get("/props")["chat_template_engine"] == engine
        status, _, answer = templates.request("POST", "/v1/chat/completions", ASK)
        assert status == 200, answer
        answers.append((answer["choices"][0]["message"]["content"], answer["usage"]))
    assert answers[0] == answers[1] == answers[2]  # BOS among it, which one template writes and the tokenizer adds


def test_what_the_template_objects_to_is_a_400(templates: Daemon) -> None:
    assert templates.switch_and_wait("own")["state"] == "succeeded"
    for path in ("/v1/chat/completions", "/apply-template"):
        status, _, body = templates.request("POST", path, {"messages": MESSAGES * 2})
        assert (status, body["error"]["param"]) == (400, "messages")
        assert "one at a time" in body["error"]["message"]


def test_a_template_that_nobody_renders_is_said_at_load_and_refused(templates: Daemon) -> None:
    assert templates.switch_and_wait("odd")["state"] == "succeeded"
    templates.wait_line(lambda line: "chat template cannot be used" in line.get("msg", ""))
    assert shown(templates)["odd"] == "unsupported"
    assert templates.get("/props")["chat_template_engine"] is None
    status, _, body = templates.request("POST", "/v1/chat/completions", ASK)
    assert status == 400
    assert "SecurityError" in body["error"]["message"]
    assert templates.request("POST", "/v1/completions", {"prompt": "One", "max_tokens": 2})[0] == 200


def test_without_the_extra_the_list_serves(tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ImportError('not installed')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **kept_beside(tmp_path / "models.yaml")}
    with Daemon(demo_config(tmp_path), env=env) as daemon:
        daemon.wait_ready()
        assert shown(daemon)["demo-stories"] == "builtin"
        assert daemon.request("POST", "/v1/chat/completions", ASK)[0] == 200
