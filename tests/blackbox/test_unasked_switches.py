"""What the daemon does without POST /switch: it follows its configuration file and its requests, and unloads what rests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.daemon import DEADLINE_S, MODELS, Daemon, EventReader, demo_config

MORE = f"  - {{id: more, path: {MODELS}/demo-calc.gguf, n_ctx: 512, n_threads: 1}}\n"
BROKEN = "  - {id: more, n_ctx: many}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return demo_config(tmp_path, one_thread=True)


def client_of(daemon: Daemon) -> OpenAI:
    return OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S)


def until(events: EventReader, name: str) -> dict[str, Any]:
    events.until(lambda e: e.name == name)
    return dict(events.seen[-1].data)


def ids(daemon: Daemon) -> list[str]:
    return [model["id"] for model in daemon.get("/models")["models"]]


# -- the configuration file ----------------------------------------------------------------------------------------------


def test_a_changed_file_is_followed_and_a_broken_one_is_said(config: Path) -> None:
    good = config.read_text()
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            # An editor writes, and the watch sees it.
            config.write_text(good + MORE)
            assert until(events, "config_reloaded")["added"] == ["more"]
            assert ids(daemon) == ["demo-stories", "demo-calc", "more"]
            assert daemon.switched("more")["state"] == "succeeded"
            # What is wrong is said, and changes nothing.
            config.write_text(good + BROKEN)
            message = until(events, "config_error")["message"]
            line = len((good + BROKEN).splitlines())
            assert f"models.yaml:{line}: models[2]" in message, message
            status = daemon.get("/status")
            assert (status["config_error"], status["current_model"]) == (message, "more")
            assert ids(daemon) == ["demo-stories", "demo-calc", "more"]
            code, _, body = daemon.request("POST", "/reload", {})
            assert (code, body["error"]["code"], body["error"]["message"]) == (422, "config_error", message)
            # Mended: the model that answers is not registered any more, and goes on.
            config.write_text(good)
            code, _, body = daemon.request("POST", "/reload", {})
            assert (code, body["changed"], body["models"], body["removed"]) == (200, True, 2, ["more"])
            status = daemon.get("/status")
            assert (status["config_error"], status["config_stale"], status["current_model"]) == (None, True, "more")
            assert daemon.complete("12+30=")["choices"][0]["text"] == "42"
            assert daemon.request("POST", "/reload", {})[2]["changed"] is False
        daemon.switched("demo-stories")
        assert daemon.get("/status")["config_stale"] is False


def test_a_hangup_reads_the_file_again_without_a_watch(config: Path) -> None:
    good = config.read_text() + "switching: {watch_config: false}\n"
    config.write_text(good)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            config.write_text(good.replace("n_parallel: 8", "n_parallel: 4"))
            os.kill(daemon.process.pid, signal.SIGHUP)
            assert until(events, "config_reloaded")["altered"] == ["demo-stories", "demo-calc"]
            assert daemon.get("/status")["config_stale"] is True  # it answers as it was loaded
            assert daemon.get("/status")["slots"]["total"] == 8
            assert daemon.switched("demo-stories")["state"] == "succeeded"
            assert daemon.get("/status")["slots"]["total"] == 4
            config.write_text("models: [")
            os.kill(daemon.process.pid, signal.SIGHUP)
            assert "models.yaml:1" in until(events, "config_error")["message"]


# -- requests ------------------------------------------------------------------------------------------------------------


def test_a_request_for_another_model_brings_it(config: Path) -> None:
    config.write_text(config.read_text() + "switching: {auto_switch: true}\n")
    with Daemon(config) as daemon, client_of(daemon) as client:
        daemon.wait_ready()
        assert [model.id for model in client.models.list()] == ["demo-stories", "demo-calc"]
        answer = client.completions.create(model="demo-calc", prompt="12+30=", temperature=0)
        assert (answer.choices[0].text, answer.model) == ("42", "demo-calc")
        stream = client.completions.create(model="demo-stories", prompt="One day", max_tokens=20, stream=True)
        chunks = list(stream)
        assert {chunk.model for chunk in chunks} == {"demo-stories"}
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices)
        op = daemon.get("/ops?limit=1")["ops"][0]
        assert (op["reason"], op["target_model_id"]) == ("auto", "demo-stories")
        # Four clients that want two models in turns: all are answered, each by its own.
        answers: list[tuple[str, str]] = []

        def ask(model: str) -> None:
            for _ in range(3):
                answer = client.completions.create(model=model, prompt="1+1=", max_tokens=4)
                answers.append((model, answer.model))

        askers = [threading.Thread(target=ask, args=(model,)) for model in ("demo-calc", "demo-stories") * 2]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert len(answers) == 12
        assert all(wanted == got for wanted, got in answers)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nope", prompt="x")
        assert daemon.get("/status")["waiting"] == 0


def test_a_request_whose_model_cannot_come_is_told_why(config: Path, tmp_path: Path) -> None:
    more = f"  - {{id: gone, path: {tmp_path}/gone.gguf}}\nswitching: {{auto_switch: true}}\n"
    config.write_text(config.read_text() + more)
    with Daemon(config) as daemon, client_of(daemon) as client:
        daemon.wait_ready()
        with pytest.raises(openai.APIStatusError) as failure:
            client.completions.create(model="gone", prompt="x", stream=True)
        assert failure.value.status_code == 503
        assert "gone.gguf" in failure.value.message
        assert daemon.complete(max_tokens=2)["model"] == "demo-stories"


@pytest.mark.soak
def test_a_stream_that_waits_for_its_model_begins_with_comments(config: Path) -> None:
    """After 15 s: the old model is busy, and stays for 18 s because of that."""
    config.write_text(config.read_text() + "switching: {auto_switch: true, auto_switch_min_stay_s: 18}\n")
    with Daemon(config) as daemon:
        daemon.wait_ready()
        switched = threading.Event()

        def keep_busy(n: int) -> None:
            while not switched.is_set():
                daemon.complete(max_tokens=n, ignore_eos=True, model="demo-stories")

        # Of different lengths: requests that end in the same step leave a model that has nothing to do.
        keepers = [threading.Thread(target=keep_busy, args=(n,)) for n in (130, 210, 370)]
        for keeper in keepers:
            keeper.start()
        daemon.wait_status(lambda status: status["slots"]["busy"] >= 2)
        connection = http.client.HTTPConnection(daemon.host, daemon.port, timeout=DEADLINE_S)
        body = {"model": "demo-calc", "prompt": "12+30=", "temperature": 0, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        first = response.readline()
        switched.set()
        rest = response.read().decode()
        connection.close()
        for keeper in keepers:
            keeper.join()
        assert first.startswith(b":")
        assert rest.rstrip().endswith("data: [DONE]")
        frames = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: {")]
        assert "".join(choice["text"] for frame in frames for choice in frame["choices"]) == "42"


# -- rest ----------------------------------------------------------------------------------------------------------------


def test_a_model_that_rests_is_unloaded_and_the_next_request_brings_it_back(config: Path) -> None:
    config.write_text(config.read_text() + "switching: {auto_switch: true, idle_unload_s: 1}\n")
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            assert until(events, "model_unloaded")["model_id"] == "demo-stories"
            status = daemon.get("/status")
            assert (status["state"], status["current_model"]) == ("ready", None)  # since the next request is answered
            assert daemon.request("GET", "/readyz")[0] == 200
            assert daemon.get("/ops?limit=1")["ops"][0]["reason"] == "idle"
            assert daemon.complete("12+30=", model="demo-calc")["choices"][0]["text"] == "42"
            assert daemon.get("/status")["current_model"] == "demo-calc"
            assert until(events, "model_unloaded")["model_id"] == "demo-calc"
    with Daemon(config) as daemon:  # nobody asked for no model
        daemon.wait_status(lambda status: status["current_model"] == "demo-calc")
