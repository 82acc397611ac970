// What is happening? The stream of /events, read with fetch (EventSource cannot send a key); it comes back by itself.

import {ApiError, ask} from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const LASTED_MS = 10_000; // a stream that ends sooner is no success: one that begins anew at once would go on so for ever
const SILENCE_MS = 60_000; // the daemon says something every 15 s; a host that vanished says nothing

// Server-sent events out of pieces of text (WHATWG HTML, section 9.2.6).
export class EventParser {
    #rest = "";
    #data = [];
    #name = "";
    lastId = null;

    push(text) {
        const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
        this.#rest = lines.pop();
        const events = [];
        for (const line of lines) {
            if (line === "") {
                if (this.#data.length) events.push({name: this.#name || "message", data: this.#data.join("\n"), id: this.lastId});
                this.#data = [];
                this.#name = "";
            } else if (!line.startsWith(":")) {
                const [, field, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
                if (field === "data") this.#data.push(value ?? "");
                else if (field === "event") this.#name = value ?? "";
                else if (field === "id" && !value?.includes("\0")) this.lastId = value ?? "";
            }
        }
        return events;
    }
}

// Calls read(text) with each piece of a response until it ends, or until nothing came for silenceMs.
export async function readText(response, read, {silenceMs = 0} = {}) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let timer;
    try {
        for (;;) {
            const silence = silenceMs
                ? new Promise((resolve) => { timer = setTimeout(() => resolve({done: true}), silenceMs); })
                : new Promise(() => {});
            const {done, value} = await Promise.race([reader.read(), silence]);
            clearTimeout(timer);
            if (done) return;
            read(decoder.decode(value, {stream: true}));
        }
    } finally {
        clearTimeout(timer);
        reader.cancel().catch(() => {});
    }
}

// Follows until `stop`. Tells `onPhase`: {phase: "connecting" | "live" | "lost" | "refused" | "paused", retryAt, error}, and
// `onEvent`: {name, data, id, restarted}. `restarted`: it is the first one of another life of the daemon.
export class EventSourceWithKey {
    #lastId = null;
    #failures = 0;
    #abort = null;
    #wake = () => {};
    #running = false;
    #paused = false;

    constructor(onEvent, onPhase) {
        this.onEvent = onEvent;
        this.onPhase = onPhase;
        this.headers = null;
    }

    start() {
        if (!this.#running) {
            this.#running = true;
            this.#follow();
        }
    }

    // At once, whatever it waits for: a key was entered, the network is back.
    retry() {
        this.#failures = 0;
        this.#abort?.abort();
        this.#wake();
    }

    // As if nothing had been told yet: another key is another reader.
    startAnew() {
        this.#lastId = null;
        this.retry();
    }

    // A tab that nobody looks at gives its connection back: browsers open six to a host, for all tabs together.
    pause() {
        this.#paused = true;
        this.#abort?.abort();
    }

    resume() {
        if (this.#paused) {
            this.#paused = false;
            this.retry();
        }
    }

    get paused() {
        return this.#paused;
    }

    async #follow() {
        for (;;) {
            if (!this.#paused) this.onPhase({phase: this.#failures ? "lost" : "connecting", retryAt: null});
            let error = null;
            const began = performance.now();
            if (!this.#paused) error = await this.#once();
            if (performance.now() - began >= LASTED_MS) this.#failures = 0;
            if (this.#paused || (error?.status >= 400 && error.status < 500 && error.status !== 429 && error.status !== 408)) {
                // Waiting cures nothing: somebody has to come back, or enter a key.
                this.onPhase(this.#paused ? {phase: "paused"} : {phase: "refused", error});
                await new Promise((resolve) => { this.#wake = resolve; });
                continue;
            }
            if (error?.name === "AbortError") continue;
            const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#failures) * (0.7 + 0.3 * Math.random());
            this.#failures += 1;
            this.onPhase({phase: "lost", retryAt: performance.now() + wait, error});
            await new Promise((resolve) => {
                const timer = setTimeout(resolve, wait);
                this.#wake = () => { clearTimeout(timer); resolve(); };
            });
        }
    }

    // One connection, until it ends. What went wrong; null where it ended as streams do.
    async #once() {
        const abort = (this.#abort = new AbortController());
        const parser = new EventParser();
        try {
            const headers = {Accept: "text/event-stream", ...(this.#lastId ? {"Last-Event-ID": this.#lastId} : {})};
            const response = await ask("GET", "/events?figures", {headers, signal: abort.signal});
            this.headers = response.headers;
            this.onPhase({phase: "live"});
            parser.lastId = this.#lastId;
            await readText(response, (text) => this.#took(parser.push(text)), {silenceMs: SILENCE_MS});
            return null;
        } catch (error) {
            return error instanceof ApiError || error.name === "AbortError" ? error : new ApiError(0, "unreachable", String(error));
        } finally {
            abort.abort();
        }
    }

    #took(events) {
        for (const {name, data, id} of events) {
            const restarted = Boolean(id && this.#lastId && life(id) !== life(this.#lastId));
            this.#lastId = id;
            this.onEvent({name, data: JSON.parse(data), id, restarted});
        }
    }
}

const life = (id) => id.split("-")[0];
