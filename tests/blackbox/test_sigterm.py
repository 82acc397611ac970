"""SIGTERM from outside: who is served until when, what the streams and the probes say, and what the kernel sends last."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.daemon import DEADLINE_S, MODELS, Daemon, demo_config
from tests.http.raw_client import RawClient

N_CTX_SLOT = 32_768


def config(folder: Path, stop_timeout_s: int, more: str = "") -> Path:
    """The storyteller with room for long answers."""
    path = folder / "models.yaml"
    path.write_text(
        f"""
server: {{port: 0, stop_timeout_s: {stop_timeout_s}{more}}}
models: [{{id: demo-stories, path: {MODELS}/demo-stories.gguf, n_ctx: {8 * N_CTX_SLOT}, n_parallel: 8, n_threads: 1}}]
"""
    )
    return path


def stories(n_tokens: int) -> dict[str, object]:
    return {"prompt": "One day", "max_tokens": n_tokens, "ignore_eos": True, "stream": True}


def raw(daemon: Daemon) -> RawClient:
    client = RawClient((daemon.host, daemon.port))
    client.sock.settimeout(DEADLINE_S)
    return client


def begin_stop(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_line(lambda line: line.get("msg") == "stopping")
    daemon.wait_status(lambda status: status["stopping"])


def test_what_runs_is_answered_whole_while_the_probes_send_others_elsewhere(tmp_path: Path) -> None:
    with Daemon(config(tmp_path, 50)) as daemon, daemon.events() as events:
        daemon.wait_ready()
        with daemon.stream("/v1/completions", stories(1000)) as stream:
            frames = iter(stream)
            next(frames)
            begin_stop(daemon)
            status, fields, body = daemon.request("GET", "/readyz")
            assert (status, fields["retry-after"], fields["connection"]) == (503, "5", "close")
            assert body == {"state": "ready", "current_model": "demo-stories", "stopping": True}
            assert daemon.request("GET", "/healthz")[0] == 503
            assert daemon.request("GET", "/livez")[0] == 200
            for path, asked in (("/v1/completions", {"prompt": "x"}), ("/switch", {"model_id": "demo-stories"})):
                status, fields, body = daemon.request("POST", path, asked)
                assert (status, body["error"]["code"]) == (503, "shutting_down")
                assert (fields["connection"], fields["retry-after"]) == ("close", "5")
            told = events.until(lambda e: e.name == "shutdown")[-1]
            assert told.data == {"reason": "SIGTERM", "deadline_s": 50}
            with daemon.events(told.id) as again:  # one that comes back is let in, and ended with the others
                assert daemon.get("/status")["slots"]["busy"] == 1, "the answer was too short for this test"
                list(frames)
                assert list(again) == []
        assert stream.done
        assert stream.frames[-1]["choices"][0]["finish_reason"] == "length"
        list(events)  # the daemon ends it
        assert daemon.wait() == 0
    assert not any("cut" in str(line.get("msg")) for line in daemon.lines)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((daemon.host, daemon.port))


def test_those_that_end_in_time_end_well_and_the_others_get_their_error_frame(tmp_path: Path) -> None:
    with Daemon(config(tmp_path, 5)) as daemon:
        daemon.wait_ready()
        streams = [daemon.stream("/v1/completions", stories(N_CTX_SLOT - 100 if i < 2 else 20)) for i in range(8)]
        all_frames = [iter(stream) for stream in streams]
        for frames in all_frames[:2]:
            next(frames)
        begin_stop(daemon)
        readers = [threading.Thread(target=lambda frames=frames: list(frames)) for frames in all_frames]
        for reader in readers:
            reader.start()
        assert daemon.wait() == 0
        for reader, stream in zip(readers, streams, strict=True):
            reader.join(DEADLINE_S)
            stream.close()
    assert [stream.done for stream in streams] == [False] * 2 + [True] * 6
    for stream in streams[:2]:
        assert stream.frames[-1]["error"]["code"] == "shutting_down"
    assert "2 requests did not end within 5 s (server.stop_timeout_s) and are cut" in [line.get("msg") for line in daemon.lines]


def test_0_cuts_at_once(tmp_path: Path) -> None:
    with Daemon(config(tmp_path, 0)) as daemon:
        daemon.wait_ready()
        with daemon.stream("/v1/completions", stories(N_CTX_SLOT - 100)) as stream:
            frames = iter(stream)
            next(frames)
            daemon.process.send_signal(signal.SIGTERM)
            list(frames)
        assert stream.frames[-1]["error"]["code"] == "shutting_down"
        assert not stream.done
        assert daemon.wait() == 0


def test_until_the_delay_is_over_only_the_probes_tell_of_the_stop(tmp_path: Path) -> None:
    daemon = Daemon(config(tmp_path, 5, ", stop_delay_s: 600"))
    daemon.wait_ready()
    begin_stop(daemon)
    assert daemon.request("GET", "/readyz")[0] == 503
    status, fields, _ = daemon.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2})
    assert (status, fields["connection"]) == (200, "close")
    with daemon.events() as events:
        assert next(iter(events)).data["stopping"]
    assert daemon.stop() == 128 + signal.SIGTERM


def test_requests_in_the_queue_are_answered_too(tmp_path: Path) -> None:
    with Daemon(config(tmp_path, 50)) as daemon:
        daemon.wait_ready()
        clients = [raw(daemon).post_only("POST", "/v1/completions", stories(200)) for _ in range(20)]
        daemon.wait_status(lambda status: status["slots"]["busy"] == 8 and status["queue"] == 12)
        begin_stop(daemon)
        answers = [client.answer() for client in clients]
        assert daemon.wait() == 0
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)
    for client in clients:
        client.close()


def test_no_reset_takes_the_last_bytes_away(tmp_path: Path) -> None:
    """Nothing is read before the process is gone, and input is left that nobody answers: either would lose bytes to a reset."""
    with Daemon(config(tmp_path, 50)) as daemon:
        daemon.wait_ready()
        idle, stream, whole = raw(daemon), raw(daemon), raw(daemon)
        idle.post_only("GET", "/status")
        stream.post_only("POST", "/v1/completions", stories(500)).post_only("GET", "/livez").post_only("GET", "/livez")
        whole.post_only("POST", "/v1/completions", {**stories(400), "stream": False}).send("GET /livez HTT")
        daemon.wait_status(lambda status: status["slots"]["busy"] == 2)
        begin_stop(daemon)
        assert daemon.wait() == 0
    assert idle.answer().status == 200
    assert stream.answer().body.endswith(b"data: [DONE]\n\n")
    assert whole.answer().json["usage"]["completion_tokens"] == 400
    for client in (idle, stream, whole):
        rest = client.rest()
        # What was pipelined may be answered still, as long as the listener is open.
        assert rest.count(b"HTTP/1.1 200") == rest.count(b"Connection: close") <= 1
        client.close()


def test_clients_that_leave_end_the_wait(tmp_path: Path) -> None:
    with Daemon(config(tmp_path, 600)) as daemon:
        daemon.wait_ready()
        clients = [raw(daemon).post_only("POST", "/v1/completions", stories(N_CTX_SLOT - 100)) for _ in range(4)]
        daemon.wait_status(lambda status: status["slots"]["busy"] == 4)
        begin_stop(daemon)
        for client, leave in zip(clients, ("close", "reset", "close", "reset"), strict=True):
            getattr(client, leave)()
        assert daemon.wait() == 0  # within DEADLINE_S


def test_a_reader_that_stalls_holds_the_stop_no_longer_than_a_write_may_take(tmp_path: Path) -> None:
    with Daemon(config(tmp_path, 1, ", send_timeout_s: 2")) as daemon:
        daemon.wait_ready()
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect((daemon.host, daemon.port))
            body = json.dumps({**stories(N_CTX_SLOT - 100), "logprobs": 5}).encode()
            stalled.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            daemon.wait_status(lambda status: status["slots"]["busy"] == 1)
            begin_stop(daemon)
            began = time.monotonic()
            assert daemon.wait() == 0
            assert time.monotonic() - began < 1 + 2 + 1 + 5


def test_a_stop_during_the_first_load_is_clean(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)):
        pass


def test_subscribers_of_events_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            daemon.process.send_signal(signal.SIGTERM)
            assert [event.name for event in events][-1] == "shutdown"
            assert daemon.wait() == 0
