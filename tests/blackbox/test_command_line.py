"""Each client command against a real daemon: what it shows, what it writes as JSON, its exit status; TCP, Unix socket, keys."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld import exits
from modeld.app import main
from modeld.arguments import COMMANDS
from tests.command_line import COMMAND, Client, client, environment, run  # noqa: F401 - a fixture
from tests.daemon import DEADLINE_S, MODELS, Daemon, demo_config

CLIENT_COMMANDS = {command.name for command in COMMANDS if command.add.__module__ == "modeld.cli.flags"}
STORY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With room for a stream that lasts as long as a test wants, and a model that is none."""
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    config = demo_config(
        folder, f"  - {{id: broken, path: {folder}/broken.gguf}}\nswitching: {{probe: false}}\n", one_thread=True
    )
    config.write_text(config.read_text().replace("n_ctx: 4096, n_parallel: 8", "n_ctx: 65536, n_parallel: 2"))
    with Daemon(config) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    """The shared one with the storyteller loaded, also after a test that has unloaded it."""
    if shared.get("/status")["current_model"] != "demo-stories":
        assert shared.switched("demo-stories")["state"] == "succeeded"
    return shared


@pytest.fixture
def at(daemon: Daemon, client: Client) -> Client:  # noqa: F811
    return client.at(daemon.url)


@contextlib.contextmanager
def held(daemon: Daemon) -> Iterator[str]:
    """The id of a switch to demo-calc that waits for the end of a running stream, which comes when the context ends."""
    with daemon.stream("/v1/completions", {"prompt": "One day", "ignore_eos": True}) as stream:
        next(iter(stream))
        op_id = daemon.switch("demo-calc", on_inflight="drain")
        daemon.wait_status(lambda status: status["op"] and status["op"]["phase"] == "drain")
        yield op_id
    daemon.wait_op(op_id)


# -- looking


def test_status_tells_which_model_answers(at: Client, daemon: Daemon) -> None:
    done = at("status")
    assert (done.status, done.err) == (exits.OK, "")
    assert done.out.startswith("demo-stories answers\n  state       ready\n")
    assert f"server      {daemon.url}, modeld " in done.out
    done = at("status", "--json")
    assert (done.status, done.json["current_model"]) == (exits.OK, "demo-stories")
    assert set(done.json) == set(daemon.get("/status"))
    assert at("status", "--check").status == exits.OK


def test_status_with_check_is_4_where_no_model_answers(at: Client, daemon: Daemon) -> None:
    daemon.unloaded()
    assert at("status").status == exits.OK
    done = at("status", "--check", "--json")
    assert (done.status, done.json["error"]["code"]) == (exits.NOT_NOW, "no_model")


def test_models_lists_what_is_registered(at: Client, daemon: Daemon) -> None:
    done = at("models")
    assert done.status == exits.OK
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0][:3] == ["ID", "STATE", "FAMILY"]
    assert rows[1][:7] == ["demo-stories", "ready", "llama", "Q8_0", "2.0", "MiB", "1.97"]
    assert at("models", "--json").json == daemon.get("/models")


# -- switching


def test_a_switch_without_wait_says_its_op(at: Client, daemon: Daemon) -> None:
    done = at("switch", "demo-calc")
    op_id = done.out.split()[0]
    assert done.status == exits.OK
    assert f"`modeld ops {op_id} --wait`" in done.out
    assert daemon.wait_op(op_id)["state"] == "succeeded"
    done = at("switch", "demo-stories", "--json")
    assert daemon.wait_op(done.json["op_id"])["target_model_id"] == "demo-stories"


def test_a_switch_with_wait_writes_its_steps_as_lines_and_ends_with_the_model_ready(at: Client, daemon: Daemon) -> None:
    done = at("switch", "demo-calc", "--wait")
    assert (done.status, done.err) == (exits.OK, "")
    assert daemon.request("GET", "/readyz")[0] == 200
    lines = done.out.splitlines()
    steps = [line.split(" s  demo-calc: ")[1] for line in lines[:-1]]
    assert steps[0] == "started (replace)"
    assert [step for step in steps if step.endswith("100 %")] == ["unload 100 %", "mmap 100 %", "warmup 100 %"]
    assert lines[-1].startswith("demo-calc answers in ")
    assert at("switch", "demo-calc", "--wait", "--quiet").out == ""


def test_a_switch_with_wait_as_json_is_the_ops_record(at: Client, daemon: Daemon) -> None:
    done = at("switch", "demo-calc", "--wait", "--json")
    record = done.json
    assert (done.status, record["state"], record["joined"]) == (exits.OK, "succeeded", False)
    assert daemon.get(f"/ops/{record['op_id']}") == {name: value for name, value in record.items() if name != "joined"}


def test_a_model_that_fails_is_status_1_with_the_reason_and_who_answers(at: Client) -> None:
    done = at("switch", "broken", "--wait")
    assert done.status == exits.FAILED
    assert "switch to broken failed: model_load_failed: cannot load " in done.err
    assert done.err.endswith("; demo-stories answers\n")
    done = at("switch", "broken", "--wait", "--json")
    assert (done.status, done.json["state"], done.json["error"]["code"]) == (exits.FAILED, "failed", "model_load_failed")


def test_an_unknown_model_is_status_1_with_the_nearest_id(at: Client) -> None:
    done = at("switch", "demo-cal", "--wait")
    assert done.status == exits.FAILED
    assert "known: 'demo-stories', 'demo-calc'" in done.err
    assert done.err.endswith("Did you mean demo-calc?\n")
    assert "Did you mean" not in at("switch", "qqq").err
    assert at("switch", "demo-cal", "--json").json["error"]["code"] == "model_not_found"


def test_a_dry_run_says_what_would_be_and_does_nothing(at: Client, daemon: Daemon) -> None:
    before = daemon.get("/status")["generation"]
    assert at("switch", "demo-calc", "--dry-run").out == "demo-calc would be loaded (replace), demo-stories would leave\n"
    assert at("switch", "demo-calc", "--dry-run", "--strategy", "overlap", "--json").json["strategy"] == "overlap"
    assert "answers already" in at("switch", "demo-stories", "--dry-run").out
    done = at("switch", "broken", "--dry-run")
    assert (done.status, "the switch would fail: model_load_failed" in done.err) == (exits.FAILED, True)
    assert daemon.get("/status")["generation"] == before


def test_how_a_switch_is_done_can_be_said(at: Client, daemon: Daemon) -> None:
    flags = ("--on-inflight", "drain", "--drain-timeout", "5", "--on-busy", "supersede", "--on-failure", "error", "--force")
    done = at("switch", "demo-calc", "--wait", "--json", "--strategy", "overlap", *flags)
    assert (done.status, done.json["strategy"]) == (exits.OK, "overlap")
    generation = daemon.get("/status")["generation"]
    done = at("switch", "demo-stories", "--if-generation", str(generation - 1), "--wait")
    assert (done.status, f"the generation is {generation}" in done.err) == (exits.FAILED, True)
    assert at("switch", "demo-stories", "--if-generation", str(generation), "--wait").status == exits.OK
    op_id = at("switch", "demo-calc", "--ready-delay", "0.05", "--wait", "--json").json["op_id"]
    assert daemon.get(f"/ops/{op_id}")["steps_ms"]["divert"] >= 50
    assert at("switch", "demo-calc", "--strategy", "somehow").status == exits.USAGE
    assert (
        at("switch", "demo-calc", "--on-inflight", "drain", "--drain-timeout", "1e9").status == exits.FAILED
    )  # the daemon's word


def test_who_waits_for_another_switch_sees_it_and_joins_the_same(daemon: Daemon, tmp_path: Path) -> None:
    with held(daemon) as op_id:
        first = start(daemon, tmp_path, "switch", "demo-stories", "--wait")
        assert first.line() == "demo-stories: queued (behind demo-calc)"
        daemon.wait_status(lambda status: status["queued_ops"] == 1)
        second = start(daemon, tmp_path, "switch", "demo-stories", "--wait", "--json")
        third = run(daemon.url, tmp_path, "switch", "demo-stories")
        assert "it is the same op" in third.out
        busy = run(daemon.url, tmp_path, "switch", "demo-calc", "--on-busy", "reject")
        assert busy.status == exits.NOT_NOW, busy
    assert first.ended() == exits.OK
    assert second.ended() == exits.OK
    joined = json.loads(second.text)
    assert joined["op_id"] == third.out.split()[0]
    assert daemon.get(f"/ops/{op_id}")["state"] == "succeeded"


def test_an_op_that_somebody_cancels_is_status_6_for_who_waits_and_0_for_who_cancels(daemon: Daemon, tmp_path: Path) -> None:
    with held(daemon) as op_id:
        waiting = start(daemon, tmp_path, "ops", op_id, "--wait")
        assert waiting.line().startswith("demo-calc: drain")
        cancels = run(daemon.url, tmp_path, "ops", op_id, "--cancel", "--wait")
        assert cancels.status == exits.OK
        assert cancels.out.splitlines()[-1] == f"{op_id} switch to demo-calc was cancelled; demo-stories answers"
        assert waiting.ended() == exits.CUT
        assert f"modeld: {op_id} switch to demo-calc was cancelled: op_cancelled: " in waiting.errors
        assert waiting.errors.endswith("; demo-stories answers\n")
    done = run(daemon.url, tmp_path, "ops", op_id, "--cancel")
    assert (done.status, "has ended already" in done.err) == (exits.FAILED, True)


def test_a_superseded_switch_is_status_6(daemon: Daemon, tmp_path: Path) -> None:
    with held(daemon) as op_id:
        waiting = start(daemon, tmp_path, "ops", op_id, "--wait")
        waiting.line()
        done = run(daemon.url, tmp_path, "switch", "demo-stories", "--on-busy", "supersede", "--wait")
        assert done.status == exits.OK
        assert waiting.ended() == exits.CUT
    assert "op_cancelled" in waiting.errors


def test_a_wait_that_is_over_is_status_7_and_the_op_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    with held(daemon) as op_id:
        done = run(daemon.url, tmp_path, "ops", op_id, "--wait-timeout", "0.3")
        assert done.status == exits.RUNS_ON
        assert f"waited 0.3 s; {op_id} goes on. `modeld ops {op_id} --wait` watches it, `modeld ops {op_id} --cancel`" in done.err
        done = run(daemon.url, tmp_path, "ops", op_id, "--wait-timeout", "0.3", "--json")
        assert (done.status, done.json["error"]["code"]) == (exits.RUNS_ON, "wait_over")
        assert daemon.get(f"/ops/{op_id}")["state"] == "running"


def test_an_interrupt_ends_the_command_and_not_the_switch(daemon: Daemon, tmp_path: Path) -> None:
    with held(daemon) as op_id:
        waiting = start(daemon, tmp_path, "ops", op_id, "--wait")
        waiting.line()
        waiting.process.send_signal(signal.SIGINT)
        assert waiting.ended() == exits.INTERRUPTED
        assert f"interrupted; {op_id} goes on. " in waiting.errors
        assert "Traceback" not in waiting.errors
        assert daemon.get(f"/ops/{op_id}")["state"] == "running"


def test_a_reader_that_leaves_does_not_change_the_outcome(daemon: Daemon, tmp_path: Path) -> None:
    with held(daemon) as op_id:
        waiting = start(daemon, tmp_path, "ops", op_id, "--wait")
        waiting.line()
        waiting.hang_up()
    assert (waiting.ended(), waiting.errors) == (exits.OK, "")


def test_unload_and_reload(at: Client, daemon: Daemon) -> None:
    done = at("unload", "--wait")
    assert (done.status, done.out.splitlines()[-1].partition(" in ")[0]) == (exits.OK, "no model answers: it was unloaded")
    assert daemon.request("GET", "/readyz")[0] == 503
    done = at("unload", "--json")
    assert daemon.wait_status(lambda status: status["last_op"]["op_id"] == done.json["op_id"])["last_op"]["kind"] == "unload"
    assert at("reload").out == "nothing has changed: 3 models\n"
    assert at("reload", "--json").json["changed"] is False


def test_reload_tells_what_changes_and_what_is_wrong(client: Client, tmp_path: Path) -> None:  # noqa: F811
    config = demo_config(tmp_path, "switching: {watch_config: false}\n", one_thread=True)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        text = config.read_text()
        config.write_text(text.replace("switching:", f"  - {{id: more, path: {MODELS}/demo-calc.gguf}}\nswitching:"))
        done = client.at(daemon.url)("reload")
        assert (done.status, done.out) == (exits.OK, "taken over: 3 models\n  added: more\n")
        config.write_text(text + "nonsense: 1\nmore: 2\n")
        done = client("reload")
        assert done.status == exits.CONFIG
        assert "nonsense" in done.err
        assert client("reload", "--json").json["error"]["code"] == "config_error"


# -- ops


def test_ops_are_listed_and_shown(at: Client, daemon: Daemon) -> None:
    at("switch", "broken", "--wait")
    rows = at("ops").out.splitlines()
    assert rows[0].split() == ["ID", "KIND", "TARGET", "STATE", "TOOK", "AGE", "WHY"]
    op_id = rows[1].split()[0]
    assert rows[1].split()[1:4] == ["switch", "broken", "failed"]
    assert rows[1].endswith("model_load_failed")
    assert len(at("ops", "--json", "--limit", "2").json["ops"]) == 2
    assert f"{op_id} switch to broken\n  state    failed (model_load_failed)" in at("ops", op_id).out
    assert at("ops", op_id, "--json").json == daemon.get(f"/ops/{op_id}")
    done = at("ops", "op-unknown")
    assert (done.status, "no op 'op-unknown'" in done.err) == (exits.FAILED, True)
    assert at("ops", "--cancel").status == exits.USAGE
    assert at("ops", "no/../id").status == exits.USAGE


# -- events


def test_events_are_followed_as_lines_and_as_json(daemon: Daemon, tmp_path: Path) -> None:
    lines, objects = start(daemon, tmp_path, "events"), start(daemon, tmp_path, "events", "--json")
    assert "snapshot  ready, demo-stories answers, generation" in lines.line(0)
    first = json.loads(objects.line(0))
    assert (first["event"], first["data"]["current_model"]) == ("snapshot", "demo-stories")
    op_id = daemon.switch("demo-calc")
    while "model_ready" not in (line := lines.line(0)):
        assert line
    assert "model_ready  demo-calc answers after" in line
    while (event := json.loads(objects.line(0)))["event"] != "model_ready":
        assert set(event) == {"id", "event", "data"}
    assert event["data"]["op_id"] == op_id
    lines.process.send_signal(signal.SIGINT)
    assert (lines.ended(), lines.errors) == (exits.INTERRUPTED, "")
    objects.hang_up()
    daemon.switch("demo-stories")
    assert (objects.ended(), objects.errors) == (exits.OK, "")


def test_events_come_from_where_one_left_off_and_end_when_a_model_answers(at: Client, daemon: Daemon) -> None:
    last_id = at("events", "--until-ready", "--json").json["id"]
    daemon.switched("demo-calc")
    done = at("events", "--until-ready", "--json", "--last-event-id", last_id)
    names = [json.loads(line)["event"] for line in done.out.splitlines()]
    assert (names[0], names[-1]) == ("model_switch_started", "model_ready")
    assert done.status == exits.OK


def test_a_daemon_that_restarts_is_followed_on(tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    socket_path = tmp_path / "modeld.sock"
    config.write_text(config.read_text().replace("port: 0", "port: 0, unix_socket: modeld.sock"))
    daemon = Daemon(config)
    try:
        daemon.wait_ready()
        following = start(daemon, tmp_path, "events", "--json", "--server", f"unix:{socket_path}")
        assert json.loads(following.line(0))["event"] == "snapshot"
    finally:
        assert daemon.stop() == 0
    with Daemon(config) as daemon:
        while (event := json.loads(following.line(0)))["event"] != "resync":
            assert event["event"] == "shutdown"
        assert json.loads(following.line(0))["event"] == "snapshot"
    following.process.terminate()
    following.ended()
    assert "connecting again" in following.errors


# -- text


def test_complete_streams_what_the_api_gives(at: Client, daemon: Daemon) -> None:
    expected = daemon.complete("One day", max_tokens=12)["choices"][0]["text"]
    for more in ((), ("--no-stream",), ("--model", "demo-stories", "--set", "top_p=0.5")):
        done = at("complete", "One", "day", *STORY, *more)
        assert (done.status, done.out, done.err) == (exits.OK, expected + "\n", "")
    done = at("complete", "One day", *STORY, "--json")
    assert done.json["choices"][0]["text"] == expected
    done = at("complete", "One day", *STORY, "--stats")
    assert (done.out, "12 made in " in done.err) == (expected + "\n", True)
    stop = expected.split()[2]
    assert at("complete", "One day", *STORY, "--stop", stop, "--stop", "zz").out == expected.partition(stop)[0] + "\n"
    assert (
        at("complete", "x", "--seed", "4", "--max-tokens", "9").out == at("complete", "x", "--seed", "4", "--max-tokens", "9").out
    )


def test_complete_and_chat_read_a_pipe(daemon: Daemon, tmp_path: Path) -> None:
    expected = daemon.complete("One day", max_tokens=12)["choices"][0]["text"]
    assert run(daemon.url, tmp_path, "complete", *STORY, text="One day\n").out == expected + "\n"
    piped = run(daemon.url, tmp_path, "chat", *STORY, text="Tell me a story.\n")
    assert (piped.status, piped.out) == (exits.OK, run(daemon.url, tmp_path, "chat", "Tell me a story.", *STORY).out)
    bad = subprocess.run(
        [*COMMAND, "complete", "-"],
        env=environment(daemon.url, tmp_path),
        input=b"\xff",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (bad.returncode, b"byte 0xff at 0 is not UTF-8" in bad.stderr) == (exits.USAGE, True)


def test_what_follows_a_grammar_or_a_schema(at: Client, tmp_path: Path) -> None:
    (tmp_path / "digits.gbnf").write_text('root ::= "4" "2"')
    assert at("complete", "x", "--grammar-file", str(tmp_path / "digits.gbnf")).out == "42\n"
    (tmp_path / "schema.json").write_text('{"enum": ["yes"]}')
    assert at("chat", "x", "--json-schema-file", str(tmp_path / "schema.json")).out == '"yes"\n'
    assert at("complete", "x", "--json-schema-file", str(tmp_path / "digits.gbnf")).status == exits.USAGE
    assert at("complete", "x", "--grammar-file", str(tmp_path / "gone")).status == exits.USAGE
    assert at("complete", "x", "--set", "nonsense").status == exits.USAGE


def test_what_the_daemon_refuses_of_a_text(at: Client, daemon: Daemon) -> None:
    done = at("complete", "x", "--temperature", "7")
    assert (done.status, done.err) == (exits.FAILED, "modeld: temperature is 7.0; allowed is 0 to 2\n")
    done = at("complete", "x", "--model", "demo-calc")
    assert (done.status, "the loaded model is 'demo-stories'" in done.err) == (exits.FAILED, True)
    daemon.unloaded()
    done = at("chat", "x")
    assert (done.status, "no model is loaded" in done.err) == (exits.NOT_NOW, True)


@pytest.mark.parametrize("more", [(), ("--no-stream",)])
def test_an_answer_that_a_switch_cuts_is_status_6_and_says_so(daemon: Daemon, tmp_path: Path, more: tuple[str, ...]) -> None:
    asking = start(daemon, tmp_path, "complete", "One day", "--set", "ignore_eos=true", *more)
    daemon.wait_status(lambda status: status["slots"]["busy"] == 1)
    if not more:
        assert asking.bytes(1)
    daemon.switched("demo-calc")
    assert asking.ended() == exits.CUT
    assert "the model was switched from 'demo-stories' to 'demo-calc'" in asking.errors
    assert ("the answer above is cut: " in asking.errors) == (not more)


def test_an_interrupted_answer_frees_its_slot(daemon: Daemon, tmp_path: Path) -> None:
    asking = start(daemon, tmp_path, "complete", "One day", "--set", "ignore_eos=true")
    assert asking.bytes(1)
    asking.process.send_signal(signal.SIGINT)
    assert asking.ended() == exits.INTERRUPTED
    assert "Traceback" not in asking.errors
    daemon.wait_status(lambda status: status["slots"]["busy"] == 0)


# -- the ways to a daemon


def test_commands_work_over_a_unix_socket_with_keys(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    config = demo_config(tmp_path, one_thread=True)
    (tmp_path / "keys").write_text("reader use use-key-of-somebody\nboss admin admin-key-of-somebody\n")
    (tmp_path / "keys").chmod(0o600)
    config.write_text(config.read_text().replace("port: 0", "port: 0, unix_socket: modeld.sock, api_key_file: keys"))
    for name in ("use", "admin"):
        (tmp_path / name).write_text(f"{name}-key-of-somebody\n")
        (tmp_path / name).chmod(0o600)
    folder = tmp_path / ".config" / "modeld"
    folder.mkdir(parents=True)
    with Daemon(config) as daemon:
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        for server in (daemon.url, f"unix:{tmp_path}/modeld.sock"):
            client.at(server)
            done = client("status")
            if server == daemon.url:
                assert done.status == exits.DENIED
                assert "No key was sent; a key of scope use comes from --key-file FILE, MODELD_API_KEY, or key_file" in done.err
                assert "a key of scope admin" in client("switch", "demo-calc").err
            else:  # where the daemon knows who asks: its own user
                assert done.status == exits.OK
                assert f"server      unix:{tmp_path}/modeld.sock, modeld" in done.out
            assert client("status", "--key-file", str(tmp_path / "use")).status == exits.OK
            done = client("switch", "demo-calc", "--wait", "--key-file", str(tmp_path / "use"))
            assert (done.status, "This needs scope admin; The key came from --key-file" in done.err) == (exits.DENIED, True)
            assert client("switch", "demo-calc", "--wait", "--key-file", str(tmp_path / "admin")).status == exits.OK
            assert client("complete", "1+2=", "--key-file", str(tmp_path / "use"), "--temperature", "0").status == exits.OK
            (folder / "client.yaml").write_text(f"server: {server}\nkey_file: {tmp_path}/admin\n")
            assert client("switch", "demo-stories", "--wait").status == exits.OK
            (folder / "client.yaml").unlink()
        monkeypatch.setenv("MODELD_API_KEY", "an-unknown-key-of-nobody")
        done = client.at(daemon.url)("events")
        assert (done.status, "The key came from MODELD_API_KEY" in done.err) == (exits.DENIED, True)


@pytest.mark.parametrize("command", sorted(CLIENT_COMMANDS))
def test_a_client_command_imports_nothing_of_the_daemon(command: str, tmp_path: Path) -> None:
    args = {"switch": ["x"], "complete": ["x"], "chat": ["x"]}.get(command, [])
    program = (
        "import sys\nfrom modeld.app import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([n for n in sys.modules if n.startswith('modeld') or n in ('ctypes', 'yaml', 'asyncio', 'logging', 'hashlib')])\n"
    )
    done = subprocess.run(
        [COMMAND[0], "-c", program, command, *args, "--timeout", "5"],
        env=environment(f"unix:{tmp_path}/nobody", tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert "no daemon can be reached" in done.stderr
    imported = set(json.loads(done.stdout.replace("'", '"')))
    light = {"modeld", "modeld.app", "modeld.exits", "modeld.arguments", "modeld.addresses", "modeld.errors", "modeld.printable",
             "modeld.privatefile", "modeld.outputs"}  # fmt: skip
    assert not {name for name in imported - light if name != "modeld.cli" and not name.startswith("modeld.cli.")}


@pytest.mark.parametrize("args", [["--key", "a-key-of-somebody-0123456789"], ["--key=a-key-of-somebody-0123456789"], ["--key"]])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["status", *args])
    assert raised.value.code == exits.USAGE
    said = capsys.readouterr().err
    assert "--key-file FILE" in said
    assert "somebody" not in said


# -- commands beside the test


class start:  # noqa: N801 - reads as what it does
    """A command in a process of its own that runs on. Ends with `ended`."""

    def __init__(self, daemon: Daemon, home: Path, *args: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environment(daemon.url, home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.errors = self.text = ""
        self._reader = threading.Thread(target=self._read_errors)
        self._reader.start()

    def line(self, after: int = 11) -> str:
        """The next line of its output, without the time at its beginning."""
        assert self.process.stdout is not None
        raw = self.process.stdout.readline().decode()
        assert raw, f"it ended: {self.ended()}, {self.errors}"
        return raw.rstrip("\n")[after:]

    def bytes(self, n: int) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(n)

    def hang_up(self) -> None:
        """Its output has no reader any more."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ended(self) -> int:
        """Its exit status; `text` and `errors` hold the rest of what it wrote."""
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            self.text = self.process.stdout.read().decode()
            self.process.stdout.close()
        self._reader.join()
        return self.process.wait(DEADLINE_S)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            self.errors = errors.read().decode()
