// Which models are there, and how does one switch? The registry, the choices of a switch, and what becomes of asking.

import {ask, askJson} from "./api.js";
import {byId, h, handOver, icon, notice, setDisabled, setHidden, setIcon, setText} from "./dom.js";
import * as words from "./words.js";

export class Models {
    #state;
    #rows = new Map(); // by id
    #render;

    // `render` draws the page anew after something was asked for here.
    constructor(state, render) {
        this.#state = state;
        this.#render = render;
        byId("unload").addEventListener("click", () => this.#unload());
        byId("op-cancel").addEventListener("click", () => this.#cancel());
        byId("reload").addEventListener("click", () => this.#reload());
    }

    render() {
        const {models, status, scope} = this.#state;
        const mayNot = scope === "use";
        byId("scope-note").hidden = !mayNot;
        for (const id of ["unload", "reload", "op-cancel"]) setDisabled(byId(id), mayNot || !status || (id === "op-cancel" && Boolean(this.#state.op?.cancelling)));
        const list = byId("registry");
        if (!models?.length) {
            this.#rows.clear();
            const text = models ? "The configuration lists no models." : status ? "Reading the registry" : "";
            if (list.children.length !== 1 || list.textContent !== text) list.replaceChildren(h("li", {class: "empty"}, text));
            return;
        }
        list.querySelector(".empty")?.remove();
        for (const [id, row] of this.#rows) {
            if (!models.some((each) => each.id === id)) {
                handOver(row.item);
                row.item.remove();
                this.#rows.delete(id);
            }
        }
        models.forEach((model, i) => {
            const row = this.#rows.get(model.id) ?? this.#makeRow(model.id);
            if (list.children[i] !== row.item) list.insertBefore(row.item, list.children[i] ?? null);
            this.#update(row, model);
        });
    }

    #makeRow(id) {
        const row = {
            name: h("span", {}), id: h("code", {}), meta: h("p", {class: "meta"}), badge: h("span", {class: "badge"}, icon("none"), h("span", {})),
            go: h("button", {type: "button", "aria-label": `Switch to ${id}`, onclick: () => this.#switch(id)}, "Switch"),
            lift: h("button", {type: "button", "aria-label": `Lift the quarantine of ${id}`, onclick: () => this.#lift(id)}, "Lift quarantine"),
        };
        row.item = h("li", {tabindex: -1}, h("div", {}, h("h3", {}, row.name, row.id), row.meta), row.badge, h("div", {class: "acts"}, row.lift, row.go));
        this.#rows.set(id, row);
        return row;
    }

    #update(row, model) {
        const {status, op, scope, link} = this.#state;
        setText(row.name, model.name || model.id);
        setText(row.id, model.name && model.name !== model.id ? model.id : "");
        const missing = model.size_bytes === null;
        setText(row.meta, words.joined(model.family, model.quant, words.parameters(model.n_params), missing ? "" : words.bytes(model.size_bytes),
            `${words.count(model.n_parallel, "slot")}`, model.n_ctx ? `${words.number(model.n_ctx)} cells` : ""));
        const quarantined = status?.quarantined?.includes(model.id);
        const answers = status?.current_model === model.id;
        const coming = op?.kind === "switch" && op.target === model.id;
        const lost = link.phase === "lost" || link.phase === "refused";
        const [kind, symbol, text] = answers ? (lost ? ["", "none", "Answered last"] : ["ready", "ready", "Answers"])
            : coming ? ["loading", "loading", "Coming"]
            : quarantined ? ["bad", "error", "In quarantine"]
            : missing ? ["bad", "error", "File missing"] : ["", "none", "Not loaded"];
        row.badge.dataset.kind = kind;
        setIcon(row.badge, symbol);
        setText(row.badge.lastElementChild, text);
        const mayNot = scope === "use" || !status;
        setHidden(row.lift, !quarantined);
        setDisabled(row.lift, mayNot);
        setHidden(row.go, (answers && !op && !status.config_stale) || coming);
        setDisabled(row.go, mayNot);
    }

    // -- what is asked for

    #options() {
        const options = {};
        for (const field of byId("options").querySelectorAll("[name]")) {
            if (field.type === "checkbox" ? field.checked : field.value) {
                options[field.name] = field.type === "checkbox" ? true : field.type === "number" ? Number(field.value) : field.value;
            }
        }
        const {if_match: ifMatch, ...body} = options;
        const headers = ifMatch && this.#state.status ? {"If-Match": `"${this.#state.status.generation}"`} : {};
        return {body, headers};
    }

    async #switch(id) {
        const {body, headers} = this.#options();
        await this.#try(`Switch to ${id}`, async () => {
            const said = await askJson("POST", "/switch", {body: {model_id: id, ...body}, headers});
            if (said.dry_run) return plan(said);
            const runs = this.#state.op || this.#state.figures?.queued_ops;
            return runs && said.joined ? notice("info", `A switch to ${id} is on its way already`, "This one has joined it.") : null;
        });
    }

    async #unload() {
        const {body: {force, dry_run: dryRun, strategy, on_failure: onFailure, ...body}, headers} = this.#options();
        await this.#try("Unload", async () => {
            await ask("POST", "/unload", {body, headers});
            return null;
        });
    }

    async #cancel() {
        const {op} = this.#state;
        if (!op) return;
        await this.#try("Cancel", async () => {
            await ask("DELETE", `/ops/${encodeURIComponent(op.op_id)}`);
            op.cancelling = true;
            return null;
        });
    }

    async #lift(id) {
        await this.#try(`Lift the quarantine of ${id}`, async () => {
            await ask("DELETE", `/quarantine/${encodeURIComponent(id)}`);
            const {status} = this.#state;
            status.quarantined = status.quarantined.filter((each) => each !== id);
            return notice("ok", `The quarantine of ${id} is lifted`, "");
        });
    }

    async #reload() {
        await this.#try("Read the configuration again", async () => {
            const said = await askJson("POST", "/reload", {body: {}});
            const restart = said.restart_needed.length ? `From the next start on: ${said.restart_needed.join(", ")}.` : "";
            return notice("ok", said.changed ? "The configuration was read again" : "The configuration is as it was", restart);
        });
    }

    async #try(what, doing) {
        let box = null;
        try {
            box = await doing();
        } catch (error) {
            const {title, message, hint} = words.explain(error);
            box = notice("bad", `${what}: ${title[0].toLowerCase()}${title.slice(1)}`, message, hint ? h("span", {class: "next"}, ` ${hint}`) : null);
        }
        byId("models-said").replaceChildren(...(box ? [box] : []));
        this.#render();
    }
}

function plan(said) {
    const {target_model_id: target} = said;
    if (!said.ok) {
        const {title, message} = words.explain(said.error);
        return notice("bad", `Dry run: a switch to ${target} would fail. ${title}`, message);
    }
    if (said.action === "keep") return notice("ok", `Dry run: ${target} answers already`, "Nothing would be done.");
    const leaves = said.leaves ? `${said.leaves} would leave.` : "No model answers now, so none would leave.";
    const how = said.strategy === "overlap" ? "It would be loaded beside the old one, without a pause." : "";
    return notice("ok", `Dry run: ${target} would be loaded`, [leaves, how].filter(Boolean).join(" "), h("span", {class: "next"}, " Nothing is known that speaks against it."));
}
