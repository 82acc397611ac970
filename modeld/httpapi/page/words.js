// What is it called in plain words? Errors, steps, sizes, times.

// By the code of the daemon's errors (docs/http.md, "Errors"): what has happened, and what may help.
const ERRORS = {
    unreachable: ["The daemon cannot be reached", "It may be stopped, or the network is down. This page tries again by itself."],
    no_answer: ["Somebody else answered in the daemon's place", "A proxy between this page and the daemon, perhaps."],
    invalid_request: ["The daemon does not take this request", ""],
    context_length_exceeded: ["This is too long for the model", "Begin a new chat, or ask for fewer tokens."],
    invalid_api_key: ["A key is needed", "Enter the key that the operator gave you."],
    permission_denied: ["This key may not do that", "It needs a key with the scope admin."],
    host_not_allowed: ["The daemon does not know itself by this name", "The operator can add the name to server.allowed_hosts."],
    origin_not_allowed: [
        "The daemon takes this page for one of another site",
        "A proxy in front must pass the Host on with its port (nginx: $http_host).",
    ],
    not_found: ["There is nothing of that name", ""],
    model_not_found: ["There is no such model", "The registry may have changed: look at the list of models."],
    method_not_allowed: ["The daemon does not take this request", ""],
    request_timeout: ["The request came too slowly", ""],
    model_not_loaded: ["Another model is loaded", ""],
    switch_rejected: ["Another switch is busy", "Nothing was done. Wait for its end, or choose another answer to that."],
    op_ended: ["It has ended already", ""],
    config_error: ["The configuration file has errors", "Nothing was changed; the old configuration goes on."],
    generation_mismatch: ["Somebody else has switched meanwhile", "Nothing was done. Look at what answers now, and ask again."],
    payload_too_large: ["This is too long for the daemon", ""],
    unsupported_media_type: ["The daemon does not take this request", ""],
    queue_full: ["The queue is full", "Try again in a moment."],
    rate_limit_exceeded: ["Your share of this minute is used up", ""],
    too_many_requests: ["You have as many requests open as you may", ""],
    headers_too_large: ["The request's head is too large", ""],
    engine_failed: ["The engine has failed", "The daemon loads the model again by itself."],
    internal_error: ["A fault of the daemon's own", "Its log has more under the request's id."],
    model_loading: ["A model is being loaded", "Ask again when it is ready."],
    model_switched: ["Cut off by a switch", ""],
    shutting_down: ["The daemon is stopping", ""],
    too_many_connections: ["The daemon has no free connection", "Try again in a moment."],
    insufficient_memory: ["There is not enough memory for it", ""],
    generation_timeout: ["The answer took too long", ""],
    model_cooldown: ["It failed too often, and has to wait", "The option about cooldown tries it all the same."],
    model_quarantined: ["It is in quarantine: it has ended the daemon twice", "Lift the quarantine, if the file is known to be good now."],
    no_model: ["No model is loaded", "Switch to one of the models."],
    model_load_failed: ["The model could not be loaded", ""],
    load_stalled: ["The load made no progress, and was given up", ""],
    probe_failed: ["The file did not survive its trial", "It was tried in a process of its own, and the daemon was not touched."],
    op_cancelled: ["Cancelled", ""],
};

// {title, message, hint} of an ApiError, or of {code, message} in an event.
export function explain(error) {
    const [title, hint] = ERRORS[error.code] ?? [`It failed: ${error.code}`, ""];
    const later = error.retryAfterS ? `The daemon says: after ${longTime(error.retryAfterS)}.` : "";
    return {title, message: sentence(error.message), hint: [hint, later].filter(Boolean).join(" ")};
}

export function sentence(text) {
    if (!text) return "";
    const begun = text[0].toUpperCase() + text.slice(1);
    return /[.!?:)]$/.test(begun) ? begun : `${begun}.`;
}

const PARTS = {
    check: "Compare digest", probe: "Trial", prefetch: "Read ahead", divert: "Balancers look away", drain: "Let answers end", rollback: "Roll back",
    unload: "Unload", mmap: "Load", warmup: "Warm up",
};
const DOING = {
    check: "Comparing the file's digest", probe: "Trying the file in a process of its own", prefetch: "Reading the file ahead",
    divert: "Letting balancers look away", drain: "Waiting for running answers", rollback: "Bringing the old model back", unload: "Unloading", mmap: "Loading",
    warmup: "Warming up",
};
export const part = (name) => PARTS[name] ?? name;
export const doing = (name) => DOING[name] ?? name;

export function bytes(n) {
    if (n === null || n === undefined) return null;
    if (n < 1e6) return `${number(n / 1e3, 1)} kB`;
    return n < 1e9 ? `${number(n / 1e6, n < 1e7 ? 1 : 0)} MB` : `${number(n / 1e9, n < 1e11 ? 1 : 0)} GB`;
}

export function parameters(n) {
    if (!n) return null;
    if (n < 1e6) return `${number(n / 1e3, 0)} K parameters`;
    return n < 1e9 ? `${number(n / 1e6, n < 1e7 ? 1 : 0)} M parameters` : `${number(n / 1e9, 1)} B parameters`;
}

export function number(value, digits = 0) {
    return value.toLocaleString("en", {minimumFractionDigits: 0, maximumFractionDigits: digits});
}

export function count(n, one, many = `${one}s`) {
    return `${number(n)} ${n === 1 ? one : many}`;
}

// Of what has taken that long: 3.1 ms, 450 ms, 12.4 s, 3 min 20 s.
export function took(ms) {
    if (ms < 10) return `${ms.toFixed(1)} ms`;
    if (ms < 1000) return `${Math.round(ms)} ms`;
    return ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : longTime(ms / 1000);
}

export function longTime(seconds) {
    const s = Math.floor(seconds);
    const [days, hours, minutes] = [Math.floor(s / 86_400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
    if (days) return `${days} d ${hours} h`;
    if (hours) return `${hours} h ${minutes} min`;
    return minutes ? `${minutes} min ${s % 60} s` : `${s} s`;
}

export function clock(date) {
    return [date.getHours(), date.getMinutes(), date.getSeconds()].map((each) => String(each).padStart(2, "0")).join(":");
}

export const joined = (...parts) => parts.filter(Boolean).join(" · ");

const REASONS = {start: "at start", death: "since its engine died", restore: "to take a switch back", auto: "for a request", idle: "since nobody used it"};
export const reason = (name) => REASONS[name] ?? "";

// One event of the log: [level, text, more].
export function tell({name, data, restarted}) {
    const target = data.target_model_id;
    switch (name) {
        case "snapshot": {
            const at = data.current_model ? `${data.current_model} answers` : "no model answers";
            return ["info", `Connected: ${at}`];
        }
        case "resync":
            return ["info", restarted ? "The daemon was started anew" : "What was missed is no longer held; the state is read anew"];
        case "model_switch_started":
            return ["info", target === null ? "Unload began" : `Switch to ${target} began`, data.strategy === "overlap" ? "beside the old model" : ""];
        case "model_switch_phase":
        case "model_loading_progress": {
            const what = data.phase ?? data.step;
            const size = data.bytes_total ? `${bytes(data.bytes)} of ${bytes(data.bytes_total)}` : "";
            const running = data.n_running ? count(data.n_running, "answer still runs", "answers still run") : "";
            const where = data.phase === "rollback" && data.to ? `to ${data.to}` : "";
            return [data.pct === 100 ? "info" : "now", `${doing(what)}: ${data.pct} %`, joined(size, running, where)];
        }
        case "model_ready":
            return ["ok", `${data.current_model_id} answers`, joined(data.ms !== undefined && took(data.ms), `generation ${data.generation}`)];
        case "model_error": {
            const {title, message} = explain(data);
            const what = target === null ? "Unload" : `Switch to ${target}`;
            if (data.code === "op_cancelled") return ["info", `${what} was cancelled`, data.rolled_back_to ? `${data.rolled_back_to} answers again` : ""];
            return ["bad", `${what} failed. ${title}`, joined(message, data.rolled_back_to && `${data.rolled_back_to} answers again`)];
        }
        case "model_unloaded":
            if (!data.op_id) return ["info", `${data.model_id} is gone: its last answers have ended`];
            return ["ok", data.model_id ? `${data.model_id} was unloaded` : "There was nothing to unload"];
        case "config_reloaded":
            return ["ok", "The configuration was read again", joined(
                count(data.models, "model"), list("new", data.added), list("gone", data.removed), list("changed", data.altered))];
        case "config_error":
            return ["bad", "The configuration file has errors; the old one goes on", data.message];
        case "shutdown":
            return ["bad", `The daemon stops (${data.reason})`, `running answers have ${longTime(data.deadline_s)}`];
        default:
            return ["info", name, JSON.stringify(data)];
    }
}

const list = (what, ids) => (ids?.length ? `${what}: ${ids.join(", ")}` : "");

// Of what still runs, so that it does not jump about: 0.4 s, 12.3 s, 3 min 20 s.
export const longElapsed = (ms) => (ms < 60_000 ? `${(Math.max(0, ms) / 1000).toFixed(1)} s` : longTime(ms / 1000));
