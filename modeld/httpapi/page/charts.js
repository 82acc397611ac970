// How busy has it been? Small charts of the last two minutes, a point a second.

import {byId, h, setText, svg} from "./dom.js";
import {number} from "./words.js";

const POINTS = 121;
const WIDTH = 240;
const HEIGHT = 56;

class Chart {
    #values = new Array(POINTS).fill(null);
    #least;

    // `least`: what the upper edge stands for at least. `unit` follows the figure.
    constructor(name, {least, unit = ""}) {
        this.name = name;
        this.#least = least;
        this.figure = h("span", {});
        this.unit = h("small", {}, unit);
        this.top = h("span", {class: "top"}, "");
        this.area = svg("path", {class: "area"});
        this.line = svg("path", {class: "line"});
        const floor = svg("path", {class: "floor", d: `M0 ${HEIGHT}H${WIDTH}`});
        this.picture = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img"}, floor, this.area, this.line);
        this.element = h("figure", {class: "chart"}, h("figcaption", {}, name), h("span", {class: "now"}, this.figure, " ", this.unit), this.picture, this.top);
    }

    push(value, {least, unit} = {}) {
        if (least) this.#least = least;
        this.#values.push(value);
        this.#values.shift();
        setText(this.figure, value === null ? "–" : number(value, value < 10 ? 1 : 0));
        if (unit !== undefined) setText(this.unit, unit);
        this.#draw();
    }

    #draw() {
        const known = this.#values.filter((value) => value !== null);
        const highest = Math.max(0, ...known);
        const top = highest <= this.#least ? this.#least : round(highest);
        let path = "";
        let first = null;
        this.#values.forEach((value, i) => {
            if (value === null) return;
            const x = (i / (POINTS - 1)) * WIDTH;
            path += `${path ? "L" : "M"}${x.toFixed(1)} ${(HEIGHT - (value / top) * (HEIGHT - 2)).toFixed(1)}`;
            first ??= x;
        });
        this.line.setAttribute("d", path);
        this.area.setAttribute("d", path ? `${path}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z` : "");
        setText(this.top, known.length ? `scale to ${number(top)}` : "");
        const now = this.figure.textContent;
        this.picture.setAttribute("aria-label", known.length
            ? `${this.name}: now ${now} ${this.unit.textContent}, highest in two minutes ${number(highest, 1)}` : `${this.name}: not known yet`);
    }
}

// The next number of 1, 2, 5, 10, 20, ... from value on.
function round(value) {
    if (value <= 0) return 1;
    const ten = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= value);
}

export class Charts {
    #tokens = new Chart("Tokens/s", {least: 10});
    #slots = new Chart("Slots in use", {least: 1});
    #queue = new Chart("Queued", {least: 4});
    #state;

    constructor(state) {
        this.#state = state;
        byId("charts").append(this.#tokens.element, this.#slots.element, this.#queue.element);
        // Redraws what has been told; nothing is asked for. Where nothing changes the daemon says nothing.
        setInterval(() => this.step(), 1000);
        this.step();
    }

    step() {
        const {figures, link} = this.#state;
        const live = link.phase === "live" && figures;
        const busy = live ? figures.slots.busy : null;
        this.#tokens.push(live ? figures.tokens_per_s.generation : null);
        this.#slots.push(busy, live ? {least: Math.max(1, figures.slots.total), unit: `of ${figures.slots.total}`} : {unit: ""});
        this.#queue.push(live ? figures.queue + figures.waiting : null);
        const cells = live && figures.kv_cells.total ? `KV cells: ${number((100 * figures.kv_cells.used) / figures.kv_cells.total, 0)} % of ${number(figures.kv_cells.total)} hold something` : "";
        const prompt = live && figures.tokens_per_s.prompt ? `prompts: ${number(figures.tokens_per_s.prompt)} tokens a second` : "";
        setText(byId("load-more"), [cells, prompt].filter(Boolean).join(" · "));
    }
}
