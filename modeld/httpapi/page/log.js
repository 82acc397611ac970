// What has happened so far? The events as they came, the newest first; the percents of one step share a line.

import {byId, h, icon, setIcon, setText} from "./dom.js";
import {clock, tell} from "./words.js";

const LONGEST = 300;
const SYMBOLS = {ok: "ready", bad: "error", now: "now", info: "todo"};

export class Log {
    #list = byId("log");
    #parts = new Map(); // rows of steps of the op that runs, by op and step

    constructor() {
        byId("log-clear").addEventListener("click", () => {
            this.#list.replaceChildren();
            this.#parts.clear();
        });
    }

    event(event) {
        const {name, data} = event;
        if (name === "figures") return;
        if (name === "snapshot") this.#end(""); // of what went on meanwhile nothing has been told
        const part = data.phase ?? data.step;
        const key = part && data.op_id ? `${data.op_id} ${part}` : null;
        const [level, text, more] = tell(event);
        const row = (key && this.#parts.get(key)) || this.#add();
        if (key) this.#parts.set(key, row);
        else if (data.op_id && name !== "model_switch_started") this.#end(`${data.op_id} `);
        row.dataset.level = level;
        setIcon(row, SYMBOLS[level]);
        setText(row.querySelector(".what"), text);
        setText(row.querySelector(".more"), more ?? "");
    }

    say(level, text) {
        const row = this.#add();
        row.dataset.level = level;
        setIcon(row, SYMBOLS[level]);
        setText(row.querySelector(".what"), text);
    }

    // What was under way when the op ended is so no longer.
    #end(opKey) {
        for (const [key, row] of this.#parts) {
            if (!key.startsWith(opKey)) continue;
            if (row.dataset.level === "now") row.dataset.level = "info";
            setIcon(row, SYMBOLS[row.dataset.level]);
            this.#parts.delete(key);
        }
    }

    #add() {
        const now = new Date();
        const row = h("li", {}, h("time", {datetime: now.toISOString()}, clock(now)), icon("todo"), h("div", {}, h("span", {class: "what"}), h("span", {class: "more"})));
        this.#list.prepend(row);
        while (this.#list.children.length > LONGEST) this.#list.lastChild.remove();
        return row;
    }
}
