"""The probes in detail: Kubernetes' format, what is excluded, and a status that agrees with what is said."""

from __future__ import annotations

import pytest
from fake_service import LOADED, FakeService
from raw_client import Answer, RawClient

from modeld.heartbeat import Heartbeat
from modeld.types import State

STUCK = Heartbeat("modeld-engine", 40.0, "what comes after a decode", ok=False)


def lines(answer: Answer) -> list[str]:
    assert answer.fields["content-type"] == "text/plain; charset=utf-8"
    text: str = answer.body.decode()
    assert text.endswith("\n")
    return list(text.splitlines())


def test_livez_in_detail(client: RawClient):
    answer = client.request("GET", "/livez?verbose")
    assert answer.status == 200
    assert lines(answer) == ["[+]ping ok", "[+]switch ok", "[+]engine ok", "[+]accept ok", "livez check passed"]


def test_livez_shows_what_is_stuck_and_is_200_all_the_same(client: RawClient, service: FakeService):
    service.beats["engine"] = STUCK
    answer = client.request("GET", "/livez?verbose=1")
    assert answer.status == 200
    assert lines(answer)[2:] == ["[-]engine failed: reason withheld", "[+]accept ok", "livez check failed"]
    plain = client.request("GET", "/livez")
    assert (plain.status, plain.json) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["readyz", "healthz"])
def test_readyz_in_detail(client: RawClient, service: FakeService, path: str):
    answer = client.request("GET", f"/{path}?verbose")
    assert answer.status == 200
    assert lines(answer) == [
        "[+]ping ok",
        "[+]model ok",
        "[+]divert ok",
        "[+]shutdown ok",
        "[+]engine ok",
        f"{path} check passed",
    ]
    service.set_status(state=State.LOADING, current_model=None)
    answer = client.request("GET", f"/{path}?verbose")
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    assert lines(answer)[1] == "[-]model failed: reason withheld"
    assert lines(answer)[-1] == f"{path} check failed"


def test_a_model_whose_engine_is_stuck_does_not_answer(client: RawClient, service: FakeService):
    service.beats["engine"] = STUCK
    answer = client.request("GET", "/readyz")
    assert (answer.status, answer.json) == (503, {"state": "ready", "current_model": LOADED.id})
    assert client.request("GET", "/health").json["error"]["message"] == "The model does not answer"
    assert lines(client.request("GET", "/readyz?verbose"))[4:] == ["[-]engine failed: reason withheld", "readyz check failed"]


def test_a_switch_thread_that_is_stuck_takes_nothing_from_the_model_that_answers(client: RawClient, service: FakeService):
    service.beats["switch"] = Heartbeat("modeld-switch", 40.0, "an op", ok=False)
    assert client.request("GET", "/readyz?verbose").status == 200
    assert "[-]switch failed: reason withheld" in lines(client.request("GET", "/livez?verbose"))


def test_a_stop_shows(client: RawClient, service: FakeService):
    service.set_status(stopping=True)
    answer = client.request("GET", "/readyz?verbose")
    assert (answer.status, lines(answer)[3]) == (503, "[-]shutdown failed: reason withheld")


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_a_model_that_is_about_to_leave_is_not_ready_and_answers(client: RawClient, service: FakeService, path: str):
    service.set_status(diverting=True)
    answer = client.request("GET", path)
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    assert answer.json == {"state": "ready", "current_model": LOADED.id, "diverting": True}
    verbose = client.request("GET", f"{path}?verbose")
    assert (verbose.status, lines(verbose)[1:3]) == (503, ["[+]model ok", "[-]divert failed: reason withheld"])
    assert client.request("GET", f"{path}?exclude=divert").status == 200
    assert client.request("GET", "/livez").status == 200
    health = client.request("GET", "/health")
    assert (health.status, health.json["error"]["message"]) == (503, "The model is about to be switched")
    assert client.request("GET", "/status").json["diverting"] is True


def test_what_is_excluded_has_not_failed(client: RawClient, service: FakeService):
    service.beats["engine"] = STUCK
    service.set_status(stopping=True)
    answer = client.request("GET", "/readyz?exclude=engine&verbose&exclude=shutdown")
    assert answer.status == 200
    assert lines(answer)[3:] == ["[+]shutdown excluded: ok", "[+]engine excluded: ok", "readyz check passed"]
    assert client.request("GET", "/readyz?exclude=engine&exclude=shutdown").status == 200
    assert client.request("GET", "/readyz?exclude=engine").status == 503
    assert lines(client.request("GET", "/livez?verbose&exclude=engine"))[-1] == "livez check passed"


def test_what_cannot_be_excluded_is_said_on_one_line(client: RawClient):
    answer = client.request("GET", "/readyz?verbose&exclude=etcd&exclude=a%0A%22b&exclude=" + "x" * 1000)
    assert answer.status == 200
    warning = lines(answer)[-2]
    assert warning == 'warn: some health checks cannot be excluded: no matches for "etcd","a\\n\\"b","' + "x" * 64 + '"'


def test_head_has_no_body(client: RawClient):
    assert client.request("HEAD", "/readyz?verbose").status == 200
    assert client.request("GET", "/livez?verbose").status == 200


@pytest.mark.parametrize("path", ["/livez", "/livez?verbose", "/readyz", "/healthz?verbose", "/health"])
def test_a_probe_asks_for_nothing_that_may_wait_for_a_disk(client: RawClient, service: FakeService, path: str):
    service.raises = AssertionError("a status has a look at the files of models that are suspected")
    assert client.request("GET", path).status == 200
