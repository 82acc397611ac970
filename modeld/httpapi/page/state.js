// What is the daemon doing, as far as the events have told? State, and what each event makes of it. Pure: no page, no clock.

export const STEPS = ["unload", "mmap", "warmup"];

export function newState() {
    return {
        link: {phase: "connecting", retryAt: null, error: null},
        scope: null, // "use" or "admin", once the daemon has said it
        startedAt: null, // when the daemon started, of performance.now()
        status: null, // the body of /status, as the events have left it
        figures: null, // of the event `figures`
        op: null, // the one that runs
        models: null,
        seen: 0, // events that changed the status
        shutdown: null,
        version: null, // of the daemon that was there first, and so of this page
    };
}

// {op_id, target, kind, phases: [{name, pct, startMs, endMs, bytes, bytes_total, n_running, to}], steps, now, at, elapsedMs}
// `at`: performance.now() when it had run for `elapsedMs`.
function newOp(data, now, elapsedMs) {
    return {
        op_id: data.op_id, target: data.target_model_id, kind: data.target_model_id === null ? "unload" : "switch",
        steps: data.steps ?? (data.target_model_id === null ? [] : STEPS), strategy: data.strategy ?? null,
        parts: [], now: null, at: now, elapsedMs, cancelling: false,
    };
}

// The op of a snapshot, with what is known of it. `serverNow`: the daemon's clock, seconds since the epoch.
function opOfSnapshot(op, now, serverNow) {
    if (!op) return null;
    const elapsedMs = op.started_at && serverNow ? Math.max(0, (serverNow - op.started_at) * 1000) : 0;
    const made = {...newOp(op, now, elapsedMs), kind: op.kind, strategy: op.strategy, cancelling: op.cancelling};
    if (op.kind === "unload") made.steps = [];
    for (const [name, ms] of Object.entries(op.steps_ms ?? {})) made.parts.push({name, pct: 100, ms});
    // While it drains or rolls back its last step is still named.
    const name = op.phase ?? op.step;
    if (name && !made.parts.some((part) => part.name === name)) made.parts.push({name, pct: op.pct ?? 0});
    made.now = name ?? null;
    return made;
}

function progressed(op, name, data, now) {
    const rest = {bytes: data.bytes, bytes_total: data.bytes_total, n_running: data.n_running, to: data.to};
    let part = op.parts.find((each) => each.name === name);
    if (!part) op.parts.push((part = {name, startMs: data.elapsed_ms}));
    Object.assign(part, {pct: data.pct, ...rest});
    if (data.pct === 100 && part.startMs !== undefined) part.ms = Math.max(0, data.elapsed_ms - part.startMs);
    op.now = name;
    op.at = now;
    op.elapsedMs = data.elapsed_ms ?? op.elapsedMs;
}

// What `event` makes of the state, in place. `now`: performance.now(); `serverNow` as above.
export function apply(state, event, now, serverNow) {
    const {name, data} = event;
    if (name === "figures") {
        state.figures = data;
        return;
    }
    state.seen += 1;
    if (name === "snapshot") {
        state.status = data;
        state.version ??= data.version;
        state.op = opOfSnapshot(data.op, now, serverNow);
        state.shutdown = data.stopping ? {} : null;
        state.startedAt = now - data.uptime_s * 1000;
        return;
    }
    const status = state.status;
    if (!status) return;
    const op = state.op?.op_id === data.op_id ? state.op : null;
    if (name === "model_switch_started") {
        state.op = newOp(data, now, data.elapsed_ms ?? 0);
    } else if (name === "model_switch_phase" && op) {
        progressed(op, data.phase, data, now);
        if (data.phase === "drain" || data.phase === "rollback") status.state = "loading";
    } else if (name === "model_loading_progress" && op) {
        progressed(op, data.step, data, now);
        if (data.step === "unload" || (data.step === "mmap" && (op.steps.includes("unload") || !status.current_model))) {
            status.state = "loading";
            status.current_model = null;
        }
    } else if (name === "model_ready") {
        Object.assign(status, {state: "ready", current_model: data.current_model_id, generation: data.generation, error: null});
        ended(state, op, data, "succeeded");
    } else if (name === "model_unloaded" && data.op_id) {
        if (!status.auto_switch) status.state = "error";
        status.current_model = null;
        ended(state, op, data, "succeeded");
    } else if (name === "model_error") {
        if (data.code !== "op_cancelled") {
            status.error = {code: data.code, message: data.message, model_id: data.target_model_id, op_id: data.op_id};
        }
        if (data.rolled_back_to) Object.assign(status, {state: "ready", current_model: data.rolled_back_to});
        else if (op && status.state === "loading") status.state = "error"; // until /status is read again, below
        ended(state, op, data, data.code === "op_cancelled" ? "cancelled" : "failed");
    } else if (name === "config_error") {
        status.config_error = data.message;
    } else if (name === "config_reloaded") {
        status.config_error = null;
    } else if (name === "shutdown") {
        state.shutdown = {reason: data.reason, deadlineS: data.deadline_s};
        status.stopping = true;
    }
}

function ended(state, op, data, how) {
    if (!op && state.op) return; // one that waited, while another one runs
    state.op = null;
    state.status.last_op = {
        op_id: data.op_id, kind: data.target_model_id === null ? "unload" : "switch", target_model_id: data.target_model_id,
        state: how, rolled_back_to: data.rolled_back_to ?? null, ms: data.elapsed_ms ?? null,
        error: data.code ? {code: data.code, message: data.message} : null,
    };
}

// Events after which the registry and what no event tells (quarantine, a stale entry) are read again, once.
export const READ_AGAIN = new Set([
    "snapshot", "model_ready", "model_error", "model_unloaded", "config_reloaded", "config_error",
]);
