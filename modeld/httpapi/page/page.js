// How do the parts of the page come together? Events change the state, and the state is drawn.

import {Access} from "./access.js";
import {askJson, key, whenRefused} from "./api.js";
import {Charts} from "./charts.js";
import {Chat} from "./chat.js";
import {byId} from "./dom.js";
import {EventSourceWithKey} from "./events.js";
import {Log} from "./log.js";
import {Models} from "./models.js";
import {READ_AGAIN, apply, newState} from "./state.js";
import {Announcer, renderElapsed, renderFacts, renderLink, renderStatus} from "./status.js";
import {startTheme} from "./theme.js";

const HIDDEN_MS = 60_000; // then a tab that nobody looks at gives its connection back

startTheme();
const state = newState();
const announcer = new Announcer();
const log = new Log();
const chat = new Chat(state, (text) => announcer.say(text));
const models = new Models(state, render);
const charts = new Charts(state);
const access = new Access(() => {
    Object.assign(state, newState());
    events.startAnew();
    render();
});
const events = new EventSourceWithKey(onEvent, onPhase);
let clockOffsetS = 0; // the daemon's clock before ours
let drawing = false;

whenRefused((error) => {
    if (error.status === 401) access.open(error);
    else if (error.code === "permission_denied") state.scope = "use";
});

function onEvent(event) {
    const now = performance.now();
    const first = state.figures === null && event.name === "figures";
    apply(state, event, now, Date.now() / 1000 + clockOffsetS);
    if (first) charts.step();
    log.event(event);
    announcer.event(event, state);
    if (READ_AGAIN.has(event.name)) readAgain();
    render();
}

function onPhase(link) {
    const before = state.link.phase;
    state.link = link;
    if (link.phase === "live") {
        state.scope = events.headers.get("x-modeld-scope");
        const date = Date.parse(events.headers.get("date") ?? "");
        if (date) clockOffsetS = (date - Date.now()) / 1000;
        if (before === "lost") announcer.say("Connected again");
    } else if (link.phase === "lost" && before === "live") {
        state.figures = null;
        log.say("bad", "Connection lost");
        announcer.say("Connection lost");
    }
    render();
}

// Once after an event that says that something else may have changed. What was read is not taken where more has happened since.
async function readAgain() {
    for (let tries = 0; tries < 3; tries += 1) {
        const seen = state.seen;
        try {
            const [status, registry] = await Promise.all([askJson("GET", "/status"), askJson("GET", "/models")]);
            state.models = registry.models;
            if (state.seen === seen && (status.op?.op_id ?? null) === (state.op?.op_id ?? null)) {
                state.status = {...status, last_op: {...status.last_op, ms: state.status?.last_op?.op_id === status.last_op?.op_id ? state.status?.last_op?.ms : undefined}};
                if (!status.last_op) state.status.last_op = null;
                render();
                return;
            }
        } catch {
            return; // the stream of events will say that the daemon is gone
        }
        render();
    }
}

// All that one piece of the stream has brought is drawn at once.
function render() {
    if (drawing) return;
    drawing = true;
    queueMicrotask(() => {
        drawing = false;
        renderLink(state);
        renderStatus(state);
        renderElapsed(state);
        models.render();
        access.render(state);
        byId("api-link").hidden = key.get() !== ""; // a link carries no key
    });
}

setInterval(() => {
    if (state.link.phase === "live") renderFacts(state);
    if (state.op) renderElapsed(state);
    if (state.link.phase === "lost") renderLink(state);
}, 100);

addEventListener("online", () => events.retry());
let hiddenSince;
document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenSince);
    if (!document.hidden) events.resume();
    else hiddenSince = setTimeout(pauseOnceQuiet, HIDDEN_MS);
});

function pauseOnceQuiet() {
    if (chat.busy) hiddenSince = setTimeout(pauseOnceQuiet, HIDDEN_MS);
    else events.pause();
}

history.replaceState(null, ""); // it has arrived whole: see start.js
render();
events.start();
