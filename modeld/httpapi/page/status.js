// Which model answers, and what is being done about it? The first card, the title of the tab, and what is said aloud.

import {byId, h, icon, notice, setHidden, setIcon, setText} from "./dom.js";
import * as words from "./words.js";

const STATE_WORDS = {ready: "Ready", loading: "Loading", error: "No model answers", none: "Connecting"};
const AT = {done: ["done", "done"], now: ["now", "running"], todo: ["todo", "to come"]};

export function renderLink(state) {
    const {phase, retryAt, error} = state.link;
    const wait = retryAt ? Math.max(0, Math.ceil((retryAt - performance.now()) / 1000)) : 0;
    const said = {
        connecting: "Connecting",
        live: "Live",
        paused: "Paused while nobody looks",
        lost: wait > 0 ? `Connection lost. Next try in ${wait} s` : "Connection lost. Trying again",
        refused: error?.code === "invalid_api_key" ? "Waiting for a key" : "Refused by the daemon",
    }[phase];
    byId("link").dataset.phase = phase;
    setText(byId("link-words"), said);
}

export function renderStatus(state) {
    const {status, op, link} = state;
    const kind = status ? (status.state === "error" && status.auto_switch ? "ready" : status.state) : "none";
    const lost = link.phase === "lost" || link.phase === "refused";
    const badge = byId("state");
    badge.dataset.state = lost ? "none" : kind;
    setIcon(badge, {ready: "ready", loading: "loading", error: "error", none: "none"}[lost ? "none" : kind]);
    setText(badge.lastElementChild, lost ? (status ? `Last known: ${STATE_WORDS[kind].toLowerCase()}` : "Not known") : STATE_WORDS[kind]);

    const target = op?.kind === "switch" ? op.target : null;
    const model = status?.current_model ?? (kind === "loading" ? target : null);
    setText(byId("model"), model ?? (status ? "No model" : "\u00a0"));
    setText(byId("about"), status ? about(state, kind, target) : "\u00a0");
    renderFacts(state);
    setHidden(byId("unload"), !status?.current_model || Boolean(op));
    setText(byId("last-op"), status?.last_op ? last(status.last_op) : "");
    setText(byId("version"), status ? `modeld ${status.version}` : "");
    renderNotices(state);
    renderOp(state);
    document.title = title(state, kind, model, lost);
}

export function renderFacts({status, startedAt}) {
    const up = status && startedAt !== null ? `up ${words.longTime((performance.now() - startedAt) / 1000)}` : "";
    setText(byId("status-facts"), status ? words.joined(`generation ${status.generation}`, up) : "");
}

function about({status, op, models}, kind, target) {
    if (kind === "loading") return op?.now === "drain" ? "Running answers may end; nothing new is let in." : "No model answers until this is done.";
    if (!status.current_model) return status.auto_switch ? "The next request brings a model." : "Switch to one of the models below.";
    const info = models?.find((each) => each.id === status.current_model);
    const beside = op && target && target !== status.current_model ? "answers while the other one is made ready" : "";
    if (!info) return beside;
    return words.joined(info.name !== info.id && info.name, info.family, info.quant, words.parameters(info.n_params),
        `${words.count(info.n_parallel, "slot")}`, info.n_ctx ? `${words.number(info.n_ctx)} cells` : "", beside);
}

function last(op) {
    const what = op.target_model_id === null ? "unload" : `switch to ${op.target_model_id}`;
    const how = {succeeded: "done", failed: "failed", cancelled: "cancelled"}[op.state] ?? op.state;
    const ms = op.ms ?? (op.started_at && op.ended_at ? (op.ended_at - op.started_at) * 1000 : null);
    return `Last: ${what}, ${how}${ms === null ? "" : ` after ${words.took(ms)}`}`;
}

function title({op}, kind, model, lost) {
    if (lost) return "Connection lost · modeld";
    if (op) return `${op.parts.find((part) => part.name === op.now)?.pct ?? 0} % ${op.target ?? "unload"} · modeld`;
    return `${kind === "error" ? "! " : ""}${model ?? "no model"} · modeld`;
}

// -- notices

let shown = "";

function renderNotices(state) {
    const {status, shutdown} = state;
    const found = [];
    if (status && status.version !== state.version) found.push(["info", `The daemon is of version ${status.version} now`, "This page came from the one before. Load it again to have the new one."]);
    if (shutdown) found.push(["warn", "The daemon is stopping", shutdown.deadlineS ? `Running answers have ${words.longTime(shutdown.deadlineS)}; nothing new is let in.` : "Nothing new is let in."]);
    if (status?.error && status.error.code !== "no_model") {
        const {title, message, hint} = words.explain(status.error);
        const failed = status.error.model_id ? `${title}: ${status.error.model_id}` : title;
        const next = status.current_model ? `${status.current_model} answers${status.last_op?.rolled_back_to ? " again" : ""}.`
            : state.op ? "" : "No model answers until somebody switches.";
        found.push(["bad", failed, message, [next, hint].filter(Boolean).join(" ")]);
    }
    if (status?.config_error) found.push(["warn", "The configuration file has errors; the old one goes on", status.config_error]);
    if (status?.config_stale) found.push(["warn", "Its entry in the configuration has changed", "", "The next switch to it loads it as it is written there now."]);
    if (status?.retiring_model) found.push(["info", `${status.retiring_model} ends its last answers`, "", "Then its memory is freed."]);
    const key = JSON.stringify(found);
    if (key === shown) return;
    shown = key;
    byId("notices").replaceChildren(...found.map(([kind, head, text, next]) => notice(kind, head, text, next ? h("span", {class: "next"}, text ? " " : "", next) : null)));
}

// -- the op that runs

function renderOp({op, figures}) {
    setHidden(byId("op"), !op);
    if (!op) return;
    const waits = figures?.queued_ops ? ` (${words.count(figures.queued_ops, "more waits", "more wait")})` : "";
    setText(byId("op-title"), (op.kind === "unload" ? "Unloading" : `Switching to ${op.target}`) + waits);
    const part = op.parts.find((each) => each.name === op.now);
    const progress = byId("op-progress");
    if (part && !["divert", "drain", "probe"].includes(part.name)) progress.value = part.pct;
    else progress.removeAttribute("value"); // how long it takes nobody knows
    setText(byId("op-step"), part ? words.joined(`${words.doing(part.name)} ${part.pct} %`, detail(part)) : "Beginning");
    const cancel = byId("op-cancel");
    setText(cancel, op.cancelling ? "Cancelling" : "Cancel");
    const places = ordered(op);
    const list = byId("op-steps");
    while (list.children.length > places.length) list.lastChild.remove();
    places.forEach(({name, at, ms}, i) => {
        const row = list.children[i] ?? list.appendChild(h("li", {}, icon("todo"), h("span", {}), h("small", {}), h("span", {class: "unseen"})));
        const [symbol, said] = AT[at];
        row.dataset.at = at;
        setIcon(row, symbol);
        setText(row.children[1], words.part(name));
        setText(row.children[2], at === "done" && ms !== undefined ? words.took(ms) : "");
        setText(row.children[3], said);
    });
}

const detail = (part) => words.joined(
    part.bytes_total ? `${words.bytes(part.bytes)} of ${words.bytes(part.bytes_total)}` : "",
    part.n_running ? words.count(part.n_running, "answer still runs", "answers still run") : "",
    part.name === "rollback" && part.to ? part.to : "");

// What has been, in the order in which it came, and the steps that are still to come.
function ordered(op) {
    const places = op.parts.map(({name, pct, ms}) => ({name, at: name === op.now && pct < 100 ? "now" : "done", ms}));
    const rolling = op.parts.some((part) => part.name === "rollback");
    if (!rolling) places.push(...op.steps.filter((name) => !op.parts.some((part) => part.name === name)).map((name) => ({name, at: "todo"})));
    return places;
}

export function renderElapsed({op, link}) {
    if (op && link.phase === "live") setText(byId("op-elapsed"), words.longElapsed(op.elapsedMs + performance.now() - op.at));
}

// -- what a screen reader says

export class Announcer {
    #quarter = -1;

    // One below the other: what comes quickly after it takes nothing away from who is still being told.
    say(text) {
        const box = byId("announcer");
        box.append(h("p", {}, text));
        while (box.children.length > 20) box.firstChild.remove();
    }

    event({name, data}, state) {
        const {op} = state;
        if (name === "model_switch_started") {
            this.#quarter = -1;
            this.say(op?.kind === "unload" ? "Unloading the model" : `Switching to ${data.target_model_id}`);
        } else if (name === "model_loading_progress" && data.step === "mmap") {
            const quarter = Math.floor(data.pct / 25);
            if (quarter > this.#quarter && quarter > 0 && quarter < 4) this.say(`Loading ${data.target_model_id}: ${data.pct} percent`);
            this.#quarter = quarter;
        } else if (["model_ready", "model_error", "model_unloaded", "shutdown", "config_error"].includes(name)) {
            const [, text, more] = words.tell({name, data});
            this.say(more ? `${text}. ${more}` : text);
        }
    }
}
