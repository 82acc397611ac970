"""The page at `/` in a real browser, on the real daemon: what people see of it, and what they can do with it.

Screenshots are kept in build/screenshots for people to look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.httpapi.auth import Gate
from modeld.httpapi.server import HttpServer
from modeld.manager.manager import Manager
from modeld.types import FileFacts, ModelSpec, Step
from tests.browser import Chromium, Tab
from tests.daemon import MODELS, ROOT, Daemon, demo_config
from tests.fake_runner import FakeFactory, Files
from tests.fronts import EXAMPLES, make_certificate

SCREENSHOTS = ROOT / "build" / "screenshots"
MARKUP = "<img src=x onerror=hacked()><b>bold</b>"
ENTRIES = """
  - {id: endless, name: Endless stories, path: %(models)s/demo-stories.gguf, n_ctx: 16384, n_parallel: 1, n_threads: 1}
  - {id: own, name: Own model, path: own.gguf, n_ctx: 512, n_threads: 1}
  - {id: markup, name: "%(markup)s", path: nowhere.gguf}
switching: {cooldown_failures: 0}
"""
PROXY = "models.localhost"  # a name that the daemon lets in without being told
KEYS = {"reader": ("use", "reader-key-0123456789abcdef"), "chief": ("admin", "chief-key-0123456789abcdef")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def chromium(folder: Path) -> Iterator[Chromium]:
    browser = Chromium(folder)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Daemon]:
    (folder / "own.gguf").write_bytes((MODELS / "demo-calc.gguf").read_bytes())
    with Daemon(demo_config(folder, ENTRIES % {"models": MODELS, "markup": MARKUP}, one_thread=True)) as daemon:
        yield daemon


def opened(tab: Tab, daemon: Daemon) -> Tab:
    tab.open(f"{daemon.url}/")
    tab.wait_text("#link", "Live")
    tab.wait("document.querySelectorAll('#registry button').length")
    return tab


@pytest.fixture
def page(chromium: Chromium, daemon: Daemon) -> Iterator[Tab]:
    """The page of the shared daemon, which has the storyteller loaded."""
    with chromium.tab() as tab:
        yield opened(tab, daemon)
        assert_well_behaved(tab, daemon.url)


def assert_well_behaved(tab: Tab, url: str, *, expected: tuple[str, ...] = ()) -> None:
    """Nothing went to another site, nothing was refused by the page's policy, nothing was thrown."""
    assert {address for address in tab.asked if not address.startswith(f"{url}/")} == set()
    assert tab.js("violations") == []
    assert [said for said in tab.complaints if not any(part in said for part in expected)] == []


def asking_for(tab: Tab, **more: object) -> None:
    """What the page asks of a model has these parameters, too."""
    tab.js(
        "(() => { const plain = fetch; window.fetch = (url, init) => plain(url, String(url).includes('/v1/')"
        f" ? {{...init, body: JSON.stringify({{...JSON.parse(init.body), ...{json.dumps(more)}}})}} : init) }})()"
    )


def say(tab: Tab, text: str) -> None:
    tab.js("document.querySelector('#prompt').focus()")
    tab.type(text)
    tab.press("Enter")


def switch_button(model_id: str) -> str:
    return f'button[aria-label="Switch to {model_id}"]'


# -- what is to be seen


def test_it_shows_which_model_answers_and_what_else_there_is(page: Tab) -> None:
    assert page.text("#state") == "Ready"
    assert page.text("#model") == "demo-stories"
    assert page.wait_text("#about", "8 slots").startswith("Demo storyteller · llama · Q8_0")
    rows = page.js("[...document.querySelectorAll('#registry li')].map((row) => row.innerText)")
    assert len(rows) == 5
    assert "Answers" in rows[0]
    assert "Not loaded" in rows[1]
    assert "File missing" in rows[4]
    page.wait_text(".chart:nth-of-type(2) .now", "of 8")
    assert page.js("document.title") == "demo-stories · modeld"
    assert page.text("#log").count("Connected: demo-stories answers") == 1
    page.screenshot(SCREENSHOTS / "idle.png")


def test_a_switch_is_watched_to_its_end(page: Tab) -> None:
    page.click(switch_button("demo-calc"))
    page.wait("document.querySelector('#model').innerText === 'demo-calc' && document.querySelector('#op').hidden")
    assert page.text("#state") == "Ready"
    for said in ("Switch to demo-calc began", "Unloading: 100 %", "Loading: 100 %", "Warming up: 100 %", "demo-calc answers"):
        page.wait_text("#log", said)
    assert page.wait_text("#last-op", "switch to demo-calc, done after").startswith("Last: ")
    page.wait("document.querySelectorAll('#registry li')[1].innerText.includes('Answers')")
    page.wait_text("#announcer", "demo-calc answers")


def test_state_comes_from_the_events_and_nothing_is_asked_at_intervals(page: Tab, daemon: Daemon) -> None:
    daemon.switched("demo-calc")
    page.wait_text("#model", "demo-calc")
    page.wait_text("#last-op", "switch to demo-calc")
    page.wait("!performance.getEntriesByType('resource').some((entry) => !entry.responseEnd)")
    before = len(page.asked)
    seconds = page.js("new Promise((resolve) => setTimeout(() => resolve(2), 2000))")
    assert (len(page.asked), seconds) == (before, 2)
    assert sum(address.endswith("/events?figures") for address in page.asked) == 1


class Stage:
    """The real surface and manager on loads that a test holds wherever it likes."""

    def __init__(self, version: str = "0.1.0", port: int = 0) -> None:
        names = {"atlas-7b": "Atlas 7B Instruct", "borealis-14b": "Borealis 14B", "cirrus-1b": "Cirrus 1B"}
        registry = [ModelSpec(model_id, Path(f"/srv/{model_id}.gguf"), name, n_ctx=16384) for model_id, name in names.items()]
        self.factory = FakeFactory(gated=True, at_once=2)
        self.manager = Manager(registry, "atlas-7b", self.factory, _Sized().host(), version=version)
        self.server = HttpServer(self.manager, "127.0.0.1", port, gate=Gate())
        self.url = self.server.url

    def __enter__(self) -> Stage:
        self.server.start()
        self.manager.start()
        self.factory.next_load().finish()
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()
        self.server.close(5)


class _Sized(Files):
    def __call__(self, spec: ModelSpec) -> FileFacts:
        billions = {"atlas-7b": 7.2, "borealis-14b": 14.8, "cirrus-1b": 1.2}[spec.id]
        n_params = int(billions * 1e9)
        return FileFacts((1, 2, 3, 4), int(n_params * 0.6), "Q4_K_M", "llama", n_ctx_train=32768, n_params=n_params)


def test_a_load_at_about_half_shows_its_steps_and_can_be_cancelled(chromium: Chromium) -> None:
    with Stage() as stage, chromium.tab() as tab:
        tab.open(f"{stage.url}/")
        tab.wait_text("#state", "Ready")
        tab.click(switch_button("borealis-14b"))
        load = stage.factory.next_load()
        for pct in range(48):
            assert load.report(Step.MMAP, pct)
        assert tab.wait_text("#op-step", "47 %").startswith("Loading 47 % · 4.2 GB of 8.9 GB")
        assert (tab.text("#state"), tab.text("#model")) == ("Loading", "borealis-14b")
        assert tab.js("document.querySelector('#op-progress').value") == 47
        assert tab.text("#op-title") == "Switching to borealis-14b"
        steps = tab.js("[...document.querySelectorAll('#op-steps li')].map((row) => row.dataset.at + ' ' + row.innerText)")
        assert [step.split("\n")[0].split(" ", 1) for step in steps][1:] == [["now", "Load"], ["todo", "Warm up"]]
        assert steps[0].startswith("done Unload")
        assert tab.js("document.title") == "47 % borealis-14b · modeld"
        assert tab.text("#announcer").endswith("Switching to borealis-14b\n\nLoading borealis-14b: 25 percent")
        first = float(tab.text("#op-elapsed").removesuffix(" s"))
        tab.wait(f"parseFloat(document.querySelector('#op-elapsed').innerText) > {first}")
        tab.screenshot(SCREENSHOTS / "loading.png")
        tab.show(360, 780)
        assert tab.js("document.documentElement.scrollWidth") == 360
        tab.screenshot(SCREENSHOTS / "phone-loading.png")
        tab.show(1280, 900)
        # Who comes now sees the same, from the snapshot alone.
        with chromium.tab() as late:
            late.open(f"{stage.url}/")
            late.wait_text("#op-step", "47 %")
            assert late.text("#op-steps").split()[0] == "Unload"
        tab.click("#op-cancel")
        tab.wait_text("#op-cancel", "Cancelling")
        load.listen()
        stage.factory.next_load().finish()
        tab.wait_text("#log", "Switch to borealis-14b was cancelled")
        tab.wait("document.querySelector('#model').innerText === 'atlas-7b' && document.querySelector('#op').hidden")
        assert_well_behaved(tab, stage.url)


def test_a_failed_switch_says_in_words_what_happened_and_what_answers(page: Tab, daemon: Daemon, folder: Path) -> None:
    daemon.switched("own")
    daemon.switched("demo-stories")
    broken, own = folder / "broken.gguf", folder / "own.gguf"
    broken.write_bytes(own.read_bytes()[:100_000])
    long = {"prompt": "One day", "max_tokens": 400, "ignore_eos": True, "n": 2, "seed": 3}
    page.click(".how summary")
    page.js("document.querySelector('[name=on_inflight]').value = 'drain'")
    with daemon.events() as events, daemon.stream("/v1/completions", long) as stream:
        next(iter(events))
        frames = iter(stream)
        next(frames)
        page.click(switch_button("own"))
        events.until(lambda event: event.data.get("phase") == "drain")
        broken.rename(own)
        list(frames)
    try:
        said = page.wait_text("#notices", "The model could not be loaded: own")
        assert "own.gguf" in said
        page.wait_text("#notices", "demo-stories answers again.")
        assert (page.text("#state"), page.text("#model")) == ("Ready", "demo-stories")
        page.wait_text("#log", "Bringing the old model back: 100 %")
        page.wait_text("#log", "Switch to own failed. The model could not be loaded")
        page.click(".how summary")
        page.screenshot(SCREENSHOTS / "rollback.png")
        page.click(switch_button("demo-calc"))
        page.wait("document.querySelector('#notices').innerText === ''")
    finally:
        own.write_bytes((MODELS / "demo-calc.gguf").read_bytes())


def test_what_is_refused_is_told_beside_the_buttons(page: Tab) -> None:
    page.click(".how summary")
    page.click("[name=dry_run]")
    page.screenshot(SCREENSHOTS / "options.png")
    page.click(switch_button("markup"))
    assert "would fail. The model could not be loaded" in page.wait_text("#models-said", "Dry run")
    page.click(switch_button("demo-calc"))
    assert "demo-stories would leave." in page.wait_text("#models-said", "Dry run: demo-calc would be loaded")
    page.click("[name=dry_run]")
    page.click("[name=if_match]")
    page.js("document.querySelector('[name=strategy]').value = 'overlap'")
    page.click(switch_button("demo-calc"))
    page.wait_text("#model", "demo-calc")
    page.wait_text("#log", "Switch to demo-calc began\nbeside the old model")
    assert page.text("#models-said") == ""


def test_without_a_model_it_says_what_to_do(page: Tab) -> None:
    page.click("#unload")
    page.wait_text("#model", "No model")
    assert page.wait_text("#state", "No model answers")
    assert page.text("#about") == "Switch to one of the models below."
    say(page, "Tell me a story.")
    assert "Switch to one of the models." in page.wait_text("#turns", "No model is loaded")
    page.click(switch_button("demo-stories"))
    page.wait_text("#state", "Ready")
    page.click("#turns .notice button")
    page.wait_text("#turns .end", "tokens")
    page.complaints = [said for said in page.complaints if "503" not in said]  # the browser's own note of it


# -- the chat


def test_the_chat_streams_and_knows_what_was_said(page: Tab) -> None:
    page.js(
        "window.lengths = []; const text = () => document.querySelector('.turn.model .text')?.innerText.length ?? 0;"
        "new MutationObserver(() => lengths.push(text()))"
        ".observe(document.querySelector('#turns'), {subtree: true, childList: true, characterData: true})"
    )
    say(page, "Tell me a story.")
    page.wait_text(".turn.model .end", "tokens")
    grown = [n for n in page.js("lengths") if n]
    assert grown == sorted(grown)
    assert page.text(".turn.model .who") == "demo-stories"
    page.wait_text("#announcer", "Answer complete.")
    say(page, "Another one.")
    page.wait("[...document.querySelectorAll('.turn.model .end')].filter((end) => end.innerText).length === 2")
    page.click("#chat-new")
    page.wait_text("#turns", "kept in this tab alone")


def test_the_charts_follow_the_load(page: Tab, daemon: Daemon) -> None:
    body = {"prompt": "One day", "max_tokens": 480, "ignore_eos": True, "temperature": 1.0}
    asked = len(page.asked)
    with daemon.stream("/v1/completions", {**body, "n": 64}) as stream:
        next(iter(stream))
        values = "[...document.querySelectorAll('.chart .now span')].map((e) => Number(e.innerText.replaceAll(',', '')))"
        page.wait(f"(([tokens, slots, queue]) => tokens > 0 && slots === 8 && queue > 0)({values})")
        page.screenshot(SCREENSHOTS / "busy.png")
        label = page.js("document.querySelector('.chart svg').getAttribute('aria-label')")
        assert label.startswith("Tokens/s: now ")
    page.wait(f"(([tokens, slots, queue]) => tokens === 0 && slots === 0 && queue === 0)({values})")
    assert len(page.asked) == asked


def test_a_stream_can_be_stopped(page: Tab, daemon: Daemon) -> None:
    daemon.switched("endless")
    asking_for(page, ignore_eos=True)
    say(page, "Tell me a story.")
    page.wait("document.querySelector('.turn.model .text')?.innerText.length > 50")
    assert page.js("document.querySelector('.turn.model').ariaBusy") == "true"
    assert page.js("document.activeElement.id") == "prompt"
    page.click("#stop")
    assert page.wait_text(".turn.model .end", "you stopped it")
    assert page.js("document.activeElement.id") == "prompt"
    assert not page.js("document.querySelector('#send').hidden")
    daemon.wait_status(lambda status: status["slots"]["busy"] == 0)


def test_a_chat_that_a_switch_cuts_says_so(page: Tab, daemon: Daemon) -> None:
    daemon.switched("endless")
    asking_for(page, ignore_eos=True)
    say(page, "Tell me a story.")
    page.wait("document.querySelector('.turn.model .text')?.innerText.length > 300")
    page.click(switch_button("demo-stories"))
    said = page.wait_text(".turn.cut .notice", "Cut off by a switch")
    assert "The answer above is a beginning." in said
    assert "from 'endless' to 'demo-stories'" in said
    page.wait_text("#announcer", "Cut off by a switch")
    page.wait_text("#model", "demo-stories")
    page.wait_text("#last-op", "switch to demo-stories")
    page.screenshot(SCREENSHOTS / "cut.png")
    boxes = "[...document.querySelectorAll('#turns, .turn .notice')].map((e) => e.getBoundingClientRect())"
    assert page.js(f"(([box, said]) => said.bottom <= box.bottom + 1 && said.top >= box.top)({boxes})"), "it is scrolled to"
    page.click(".turn.cut button")
    page.wait("!document.querySelector('.turn.cut') && document.querySelector('.turn.model .end').innerText.includes('token')")
    assert page.text(".turn.model .who") == "demo-stories"


RECORD = """
(() => {
    const plain = fetch;
    window.sent = [];
    window.fetch = (url, init) => {
        if (String(url).includes("/v1/")) sent.push(JSON.parse(init.body).messages.map(({role, content}) => [role, content]));
        return plain(url, init);
    };
})()
"""


def test_a_new_chat_begins_with_nothing_of_the_old_one(page: Tab, daemon: Daemon) -> None:
    daemon.switched("endless")
    asking_for(page, ignore_eos=True)
    page.js(RECORD)
    say(page, "Tell me a story.")
    page.wait("document.querySelector('.turn.model .text')?.innerText.length > 50")
    page.click("#chat-new")
    page.wait("!document.querySelector('#send').hidden")
    say(page, "Another one.")
    page.wait("sent.length === 2")
    assert page.js("sent[1]") == [["user", "Another one."]]
    page.click("#stop")


def test_a_question_that_was_cut_off_goes_with_the_next_one_and_alone_the_last_is_asked_again(page: Tab, daemon: Daemon) -> None:
    """Templates of many models refuse turns that do not alternate."""
    page.js(RECORD)
    page.click("#unload")
    page.wait_text("#model", "No model")
    for text in ("Tell me a story.", "A short one."):
        say(page, text)
        page.wait(f"document.querySelectorAll('#turns .notice').length === {len(page.js('sent'))}")
    assert page.js("sent[1]") == [["user", "Tell me a story.\n\nA short one."]]
    assert page.js("document.querySelectorAll('#turns .notice button').length") == 1
    daemon.switched("demo-stories")
    page.js("document.querySelector('#turns .notice button').focus()")
    page.press("Enter")
    page.wait("[...document.querySelectorAll('#turns .end')].at(-1).innerText.includes('token')")
    assert page.js("sent[2]") == page.js("sent[1]")
    assert page.js("document.activeElement.id") == "prompt", "the focus went on to Stop, and from there to the next message"
    page.complaints = [said for said in page.complaints if "503" not in said]  # the browser's own note of it


def test_a_long_answer_is_drawn_once_for_a_picture_on_the_screen(page: Tab) -> None:
    page.js(
        "window.drawn = 0; new MutationObserver((all) => { drawn += all.filter(({type}) => type === 'characterData').length })"
        ".observe(document.querySelector('#turns'), {subtree: true, characterData: true});"
        "const plain = fetch; window.fetch = (url, init) => !String(url).includes('/v1/') ? plain(url, init) : Promise.resolve("
        "new Response(new ReadableStream({start(stream) {"
        "    for (let i = 0; i < 5000; i += 1) stream.enqueue(new TextEncoder().encode("
        "        `data: ${JSON.stringify({choices: [{delta: {content: `word ${i} `}}]})}\\n\\n`));"
        "    stream.enqueue(new TextEncoder().encode('data: [DONE]\\n\\n')); stream.close();"
        "}}))); 0"
    )
    say(page, "Tell me a long story.")
    page.wait_text("#announcer", "Answer complete.")
    assert page.text(".turn.model .text").endswith("word 4999")
    assert 0 < page.js("drawn") < 1000


def test_what_others_wrote_stays_text(page: Tab) -> None:
    assert MARKUP in page.text("#registry")
    asking_for(page, grammar=f"root ::= {json.dumps(MARKUP)}")
    say(page, f"{MARKUP}?")
    page.wait_text(".turn.model .end", "token")
    assert page.text(".turn.model .text") == MARKUP
    assert page.text(".turn.user .text") == f"{MARKUP}?"
    page.click(switch_button("markup"))
    page.wait_text("#log", "Switch to markup failed")
    assert page.js("document.querySelectorAll('main img, main b').length") == 0
    assert page.js("typeof hacked") == "undefined"
    # And where a script should forget it, the browser does not.
    assert page.js("(() => { try { document.body.innerHTML = 'x' } catch (error) { return error.name } })()") == "TypeError"
    page.complaints = [said for said in page.complaints if "TrustedHTML" not in said]
    page.js("violations.length = 0")


def test_a_script_that_runs_from_right_to_left_does_so_in_the_chat(page: Tab) -> None:
    asking_for(page, grammar='root ::= "مرحبا ok"')
    say(page, "مرحبا")
    page.wait_text(".turn.model .end", "token")
    gaps = page.js(
        "(() => { const text = document.querySelector('.turn.model .text'); const range = document.createRange();"
        "range.selectNodeContents(text); const [box, line] = [text, range].map((each) => each.getBoundingClientRect());"
        "return [line.left - box.left, box.right - line.right] })()"
    )
    assert gaps[0] > 100 > 2 > gaps[1], "it begins at the right"


# -- the connection and the key


def test_it_comes_back_by_itself_when_the_daemon_does(chromium: Chromium, tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    with chromium.tab() as tab:
        with Daemon(config) as daemon:
            opened(tab, daemon)
            tab.wait_text("#state", "Ready")
        assert tab.wait_text("#link", "Connection lost")
        tab.wait_text("#announcer", "Connection lost")
        tab.wait_text("#state", "Last known: ready")
        assert tab.text("#log").startswith(f"{tab.text('#log time')}\nConnection lost")
        assert "The daemon stops (SIGTERM)" in tab.text("#log")
        tab.screenshot(SCREENSHOTS / "lost.png")
        with Daemon(config, flags=("--port", str(daemon.port))) as again:
            assert again.port == daemon.port
            tab.wait_text("#link", "Live")
            tab.wait_text("#log", "The daemon was started anew")
            tab.wait_text("#state", "Ready")
            tab.click(switch_button("demo-calc"))
            tab.wait_text("#model", "demo-calc")
        assert_well_behaved(tab, daemon.url, expected=("net::ERR_",))


def test_a_page_that_is_older_than_the_daemon_says_so(chromium: Chromium) -> None:
    with chromium.tab() as tab:
        with Stage() as stage:
            tab.open(f"{stage.url}/")
            tab.wait_text("#version", "modeld 0.1.0")
        tab.wait_text("#link", "Connection lost")
        assert tab.text("#notices").count("version") == 0
        with Stage("0.2.0", int(stage.url.rpartition(":")[2])):
            tab.wait_text("#notices", "The daemon is of version 0.2.0 now")
            tab.call("Page.reload")
            tab.wait_text("#version", "modeld 0.2.0")
            assert tab.text("#notices") == ""


HIDE = """
(() => {
    Object.defineProperty(document, "hidden", {value: true, configurable: true});
    const plain = setTimeout;
    window.setTimeout = (what) => plain(what, 0);
    document.dispatchEvent(new Event("visibilitychange"));
    window.setTimeout = plain;
})()
"""


def test_a_tab_that_nobody_looks_at_gives_its_connection_back_and_misses_nothing(page: Tab, daemon: Daemon) -> None:
    page.js(HIDE)
    page.wait_text("#link", "Paused while nobody looks")
    daemon.switched("demo-calc")
    page.js("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_text("#log", "demo-calc answers")
    assert page.text("#link") == "Live"
    assert page.text("#log").count("Connected") == 1, "no snapshot: what was missed was replayed"


def test_a_tab_that_nobody_looks_at_waits_for_its_answer_and_gives_its_connection_back_then(page: Tab, daemon: Daemon) -> None:
    daemon.switched("endless")
    asking_for(page, ignore_eos=True)
    say(page, "Tell me a story.")
    page.wait("document.querySelector('.turn.model .text')?.innerText.length > 50")
    page.js(
        "window.looks = 0; window.plain = setTimeout; window.setTimeout = (what, ms) => what.name !== 'pauseOnceQuiet'"
        " ? plain(what, ms) : plain(() => { looks += 1; what() }, 50); 0"
    )
    page.js(HIDE.replace("window.setTimeout = (what) => plain(what, 0);", ""))
    page.wait("looks >= 2")
    assert page.text("#link") == "Live"
    page.js("document.querySelector('#stop').click()")
    page.wait_text("#link", "Paused while nobody looks")


STEPS_OF_A_LOST_OP = """
(async () => {
    const {Log} = await import("./page/log.js");
    const log = new Log();
    const marks = () => document.querySelectorAll("#log [data-level=now]").length;
    log.event({name: "model_loading_progress", data: {op_id: "op-1", target_model_id: "m", step: "mmap", pct: 47}});
    const before = marks();
    log.event({name: "snapshot", data: {current_model: null}});
    return [before, marks()];
})()
"""


def test_what_ran_when_the_daemon_went_away_is_not_shown_to_run_for_ever(page: Tab) -> None:
    assert page.js(STEPS_OF_A_LOST_OP) == [1, 0]


PARSE = """
(async () => {
    const {EventParser} = await import("./page/events.js");
    const text = ": hello\\r\\n\\r\\nid: a-1\\nevent: e\\ndata: {\\ndata:  1}\\n\\nevent: f\\rdata:2\\r\\rid\\ndata: \u00e9\\n\\n"
        + "event: without data\\n\\ndata: never ended\\n";
    const expected = JSON.stringify([
        {name: "e", data: "{\\n 1}", id: "a-1"}, {name: "f", data: "2", id: "a-1"}, {name: "message", data: "\u00e9", id: ""},
    ]);
    const wrong = [];
    for (let cut = 0; cut <= text.length; cut += 1) {
        for (const more of [cut, Math.min(text.length, cut + 1)]) {
            const parser = new EventParser();
            const found = [text.slice(0, cut), text.slice(cut, more), text.slice(more)].flatMap((part) => parser.push(part));
            if (JSON.stringify(found) !== expected) wrong.push([cut, more, found]);
        }
    }
    return wrong;
})()
"""


def test_events_are_read_wherever_the_network_cuts_them(page: Tab) -> None:
    assert page.js(PARSE.replace("\\\\", "\\")) == []


WAITS = """
(async () => {
    const {EventSourceWithKey} = await import("./page/events.js");
    const [plainFetch, plainTimeout] = [fetch, setTimeout];
    window.fetch = () => Promise.resolve(new Response("id: a-1\\nevent: e\\ndata: {}\\n\\n"));
    window.setTimeout = (what) => plainTimeout(what, 0);
    const waits = [];
    await new Promise((resolve) => {
        const source = new EventSourceWithKey(() => {}, ({retryAt}) => {
            if (retryAt && waits.push(retryAt - performance.now()) === 6) {
                source.pause();
                resolve();
            }
        });
        source.start();
    });
    [window.fetch, window.setTimeout] = [plainFetch, plainTimeout];
    return waits;
})()
"""


def test_a_stream_that_ends_as_soon_as_it_has_begun_is_asked_for_less_and_less(page: Tab) -> None:
    waits = page.js(WAITS)
    assert 0.6 * 500 < waits[0] <= 500
    assert 0.6 * 5000 < waits[-1] <= 5000
    assert sorted(waits[:4]) == waits[:4]


def test_a_page_that_does_not_arrive_whole_asks_for_itself_again(chromium: Chromium, daemon: Daemon) -> None:
    with chromium.tab() as tab:
        tab.call("Network.setBlockedURLs", urls=["*/page/words.js"])
        tab.open(f"{daemon.url}/")
        tab.wait_text("#link", "The page did not arrive whole. Trying again")
        tab.wait("(history.state?.tries ?? 0) >= 2")  # it has done so once, and waits for longer this time
        tab.call("Network.setBlockedURLs", urls=[])
        tab.call("Page.reload")
        tab.wait_text("#link", "Live")
        assert tab.js("history.state") is None
        assert_well_behaved(tab, daemon.url, expected=("ERR_BLOCKED_BY_CLIENT",))


NOTHING_IS_KEPT = """
for (const name of ["localStorage", "sessionStorage"]) {
    Object.defineProperty(window, name, {get() { throw new DOMException("not allowed", "SecurityError") }});
}
"""


def test_a_browser_that_may_keep_nothing_shows_it_all_the_same(chromium: Chromium, keyed: Daemon) -> None:
    with chromium.tab() as tab:
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=NOTHING_IS_KEPT)
        tab.open(f"{keyed.url}/")
        tab.wait("document.activeElement?.id === 'key-input'")
        tab.type(KEYS["reader"][1])
        tab.press("Enter")
        tab.wait_text("#key-words", "Key: use")
        tab.wait_text("#model", "demo-stories")
        tab.click("#theme")
        tab.wait_text("#theme", "Theme: light")
        assert_well_behaved(tab, keyed.url, expected=("401",))


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Daemon]:
    config = demo_config(tmp_path, one_thread=True)
    config.write_text(config.read_text().replace("port: 0}", "port: 0, api_key_file: keys}"))
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_text("".join(f"{name} {scope} {key}\n" for name, (scope, key) in KEYS.items()))
    with Daemon(config) as daemon:
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        yield daemon


def test_a_key_is_asked_for_once_and_says_what_it_may(chromium: Chromium, keyed: Daemon, tmp_path: Path) -> None:
    with chromium.tab() as tab:

        def enter(key: str) -> None:
            tab.wait("document.activeElement.id === 'key-input'")
            tab.type(key)
            tab.press("Enter")

        tab.open(f"{keyed.url}/")
        tab.wait_text("#key-why", "asks for a key before it says anything")
        assert tab.text("#link") == "Waiting for a key"
        tab.screenshot(SCREENSHOTS / "key.png")
        tab.wait("document.activeElement.id === 'key-input'")
        tab.type("half of a k")
        asked = "performance.getEntriesByType('resource').filter(({name}) => name.endsWith('/events?figures')).length"
        before = tab.js(asked)
        tab.js("dispatchEvent(new Event('online'))")  # it tries again, and is refused again
        tab.wait(f"{asked} > {before} && document.querySelector('#link').innerText === 'Waiting for a key'")
        assert tab.js("document.querySelector('#key-input').value") == "half of a k"
        tab.js("document.querySelector('#key-input').select()")
        enter("a-wrong-key-0123456789abcdef")
        tab.wait_text("#key-error", "The API key that was sent is none of this server's.")
        enter(KEYS["reader"][1])
        tab.wait_text("#link", "Live")
        tab.wait_text("#key-words", "Key: use")
        assert "need a key with the scope admin" in tab.text("#scope-note")
        tab.wait_text("#registry", "demo-calc")
        assert tab.js("[...document.querySelectorAll('#registry button, #unload, #reload')].every((button) => button.disabled)")
        say(tab, "Tell me a story.")
        tab.wait_text(".turn.model .end", "token")
        tab.screenshot(SCREENSHOTS / "use-key.png")
        # Kept over a reload of the page, nowhere but in this tab, and in no address.
        tab.call("Page.reload")
        tab.wait_text("#key-words", "Key: use")
        assert tab.js("[Object.values(sessionStorage).length, localStorage.length, document.cookie]") == [1, 0, ""]
        tab.click("#key-open")
        enter(KEYS["chief"][1])
        tab.wait_text("#key-words", "Key: admin")
        tab.click(switch_button("demo-calc"))
        tab.wait_text("#model", "demo-calc")
        assert not tab.js("document.querySelector('#scope-note').checkVisibility()")
        assert not [address for address in tab.asked if any(key in address for _, key in KEYS.values())]
        # A key that is taken back ends the stream, and is asked for again.
        (tmp_path / "keys").write_text(f"reader use {KEYS['reader'][1]}\n")
        keyed.request("POST", "/reload", {}, {"X-Api-Key": KEYS["chief"][1]})
        tab.wait_text("#key-error", "none of this server's")
        tab.click("#key-forget")
        tab.wait_text("#key-why", "asks for a key")
        assert tab.js("sessionStorage.length") == 0
        assert_well_behaved(tab, keyed.url, expected=("401",))


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_works_behind_a_proxy_with_tls_on_a_port_of_its_own(
    name: str, chromium: Chromium, daemon: Daemon, tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path, PROXY)
    with EXAMPLES[name](tmp_path, certificate, f"{daemon.host}:{daemon.port}") as front, chromium.tab() as tab:
        tab.call("Security.setIgnoreCertificateErrors", ignore=True)
        url = f"https://{PROXY}:{front.address[1]}"
        tab.open(f"{url}/")
        tab.wait_text("#link", "Live")
        tab.click(switch_button("demo-calc"))
        tab.wait_text("#last-op", "switch to demo-calc")
        say(tab, "1+1=")
        tab.wait_text(".turn.model .end", "token")
        assert_well_behaved(tab, url)


# -- for everybody


CONTRAST = """
(() => {
    const parse = (text) => { const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number); return {rgb: [r, g, b], a: a ?? 1} };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((each) => each / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const {rgb, a} = parse(getComputedStyle(at).backgroundColor);
            if (a === 1) return rgb;
        }
        return [255, 255, 255];
    };
    const ratio = (one, other) => {
        const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const leftOut = ".unseen, :disabled, script, noscript";
    const weak = [];
    let n = 0;
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        const element = node.parentElement;
        if (!node.textContent.trim() || !element.checkVisibility() || element.closest(leftOut)) continue;
        n += 1;
        const found = ratio(parse(getComputedStyle(element).color).rgb, ground(element));
        if (found < 4.5) weak.push(`${node.textContent.trim().slice(0, 40)}: ${found.toFixed(2)}`);
    }
    for (const field of document.querySelectorAll("button, input:not([type=checkbox]), select, textarea")) {
        const style = getComputedStyle(field);
        if (!field.checkVisibility() || field.disabled || parse(style.borderTopColor).a === 0) continue;
        const found = ratio(parse(style.borderTopColor).rgb, ground(field.parentElement));
        if (found < 3) weak.push(`the edge of ${field.id || field.name || field.textContent}: ${found.toFixed(2)}`);
    }
    return {n, weak};
})()
"""


def show_everything(page: Tab) -> None:
    page.click(".how summary")
    page.click(".settings summary")
    page.click(switch_button("markup"))
    page.wait_text("#notices", "could not be loaded")
    say(page, "Tell me a story.")
    page.wait_text(".turn.model .end", "token")


def test_texts_stand_out_from_their_ground_in_light_and_dark(page: Tab) -> None:
    show_everything(page)
    for dark in (False, True):
        page.show(1280, 900, dark=dark)
        found = page.js(CONTRAST)
        assert found["n"] > 60
        assert found["weak"] == [], "dark" if dark else "light"
    page.click(".how summary")
    page.click(".settings summary")
    page.screenshot(SCREENSHOTS / "dark.png")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark_ground = page.js(ground)
    page.click("#theme")  # auto -> light
    assert page.text("#theme") == "Theme: light"
    assert page.js(ground) != dark_ground
    page.show(1280, 900)
    page.click("#theme")
    assert (page.text("#theme"), page.js(ground)) == ("Theme: dark", dark_ground)
    page.call("Page.reload")
    page.wait_text("#theme", "Theme: dark")
    assert page.js(ground) == dark_ground


def test_every_control_has_a_name_and_every_part_a_heading(page: Tab) -> None:
    show_everything(page)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            role = node.get("role", {}).get("value", "")
            named.setdefault(role, []).append(node.get("name", {}).get("value", "").strip())
    wanted = ("button", "textbox", "combobox", "checkbox", "spinbutton", "link", "image", "region", "log", "DisclosureTriangle")
    for role in wanted:
        assert named.get(role), f"there is no {role}"
        assert all(named[role]), f"a {role} has no name: {named[role]}"
    assert {"banner", "main", "contentinfo"} <= {*named}
    assert {"Status", "Load", "Models", "Chat", "Events"} <= {*named["region"]}
    assert named["heading"][:2] == ["modeld", "Status"]
    assert len(set(named["button"])) == len(named["button"]), "two buttons have one name"
    live = page.js("[...document.querySelectorAll('[role=status], [role=alert], [role=log], [aria-live]')].map((e) => e.id)")
    assert {"announcer", "link", "models-said", "turns", "key-error"} <= {*live}
    assert page.js("document.documentElement.lang") == "en"
    duplicates = "[...document.querySelectorAll('[id]')].map((e) => e.id).filter((id, i, all) => all.indexOf(id) !== i)"
    assert page.js(duplicates) == []


def test_it_is_worked_by_the_keyboard_alone(page: Tab) -> None:
    stops: list[str] = []
    described = (
        "(() => { const e = document.activeElement; return [e.getAttribute('aria-label') || e.innerText || e.id, "
        "e.id, getComputedStyle(e).outlineStyle !== 'none', e === document.body] })()"
    )
    while True:
        page.press("Tab")
        name, identity, outlined, back = page.js(described)
        if back or len(stops) > 40:
            break
        assert outlined, f"the focus on {name} cannot be seen"
        stops.append(identity or name)
        if name == "Switch to demo-calc":
            page.press("Enter")
            page.wait_text("#model", "demo-calc")
    wanted = [
        "Skip to the content",
        "key-open",
        "theme",
        "unload",
        "reload",
        "Switch to demo-calc",
        "prompt",
        "send",
        "log-clear",
    ]
    assert [stop for stop in stops if stop in wanted] == wanted
    assert len(stops) == len(set(stops))
    page.js("document.querySelector('#key-open').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#key-dialog').open && document.activeElement.id === 'key-input'")
    page.press("Escape")
    page.wait("!document.querySelector('#key-dialog').open && document.activeElement.id === 'key-open'")
    # A row that is drawn anew keeps the focus.
    page.js("document.querySelector(`button[aria-label='Switch to own']`).focus()")
    page.press("Enter")
    page.wait_text("#last-op", "switch to own")
    page.js("document.querySelector(`button[aria-label='Switch to demo-stories']`).focus()")
    page.click("#reload")
    page.wait_text("#models-said", "The configuration is as it was")


def test_a_button_that_goes_away_leaves_the_focus_in_its_place(chromium: Chromium) -> None:
    """Else a keyboard begins at the top again, and a reader of the screen does not know where it is."""
    focused = "(document.activeElement.id || document.activeElement.innerText.split('\\n')[0])"
    with Stage() as stage, chromium.tab() as tab:

        def press(selector: str) -> None:
            tab.wait(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
            tab.js(f"document.querySelector({json.dumps(selector)}).focus()")
            tab.press("Enter")

        tab.open(f"{stage.url}/")
        tab.wait_text("#state", "Ready")
        press(switch_button("borealis-14b"))
        load = stage.factory.next_load()
        tab.wait_text("#op-title", "borealis-14b")
        assert tab.js(focused).startswith("Borealis 14B")
        press("#op-cancel")
        tab.wait_text("#op-cancel", "Cancelling")
        assert tab.js(focused) == "status"
        load.listen()
        stage.factory.next_load().finish()
        tab.wait("document.querySelector('#model').innerText === 'atlas-7b' && document.querySelector('#op').hidden")
        press("#unload")
        tab.wait_text("#model", "No model")
        assert tab.js(focused) == "status"
        tab.press("Tab")
        assert tab.js(focused) == "reload", "it goes on from there"
        assert_well_behaved(tab, stage.url)


LINES_OF_HEADINGS = """
[...document.querySelectorAll("h1, h2:not(.unseen)")].filter((each) => each.checkVisibility()).map((each) => {
    const range = document.createRange();
    range.selectNodeContents(each);
    return new Set([...range.getClientRects()].map(({top}) => Math.round(top / 8))).size;
})
"""


def test_headings_stay_whole_on_the_smallest_screen(page: Tab) -> None:
    page.show(320, 640)
    lines = page.js(LINES_OF_HEADINGS)
    assert len(lines) > 4
    assert max(lines[1:]) == 1


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_scrolls_sideways_on_a_small_screen(page: Tab, width: int) -> None:
    page.show(width, 780)
    if width == 360:
        page.screenshot(SCREENSHOTS / "phone.png")
    show_everything(page)
    say(page, "x" * 300)
    page.wait("document.querySelectorAll('.turn.model .end').length === 2")
    assert page.js("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.js(f"{wide}.map((e) => e.outerHTML)") == []
