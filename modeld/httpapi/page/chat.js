// What does the model say? A conversation that streams, can be stopped, and says so where a switch has cut it off.

import {ApiError, ask} from "./api.js";
import {byId, h, notice, setText} from "./dom.js";
import {EventParser, readText} from "./events.js";
import * as words from "./words.js";

export class Chat {
    #turns = []; // {role, content}
    #abort = null;
    #atEnd = true; // nobody has scrolled up to read
    #state;
    #announce;

    constructor(state, announce) {
        this.#state = state;
        this.#announce = announce;
        byId("composer").addEventListener("submit", (event) => {
            event.preventDefault();
            this.#send();
        });
        byId("prompt").addEventListener("keydown", (event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                this.#send();
            }
        });
        byId("stop").addEventListener("click", () => this.#abort?.abort());
        byId("chat-new").addEventListener("click", () => this.#clear());
        const box = byId("turns");
        box.addEventListener("scroll", () => {
            this.#atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
        });
    }

    get busy() {
        return this.#abort !== null;
    }

    #clear() {
        this.#abort?.abort();
        this.#turns = [];
        byId("turns").replaceChildren(h("p", {class: "empty"}, "A question to whichever model answers. It is kept in this tab alone."));
        byId("prompt").focus();
    }

    #send() {
        const prompt = byId("prompt");
        const text = prompt.value.trim();
        if (!text || this.busy) return;
        prompt.value = "";
        byId("turns").querySelectorAll(".empty, .again").forEach((each) => each.remove());
        this.#turns.push({role: "user", content: text});
        byId("turns").append(h("div", {class: "turn user"}, h("span", {class: "unseen"}, "You: "), h("div", {class: "text"}, text)));
        this.#answer();
    }

    // One answer to what has been said so far. What was cut off is not shown to the model again.
    async #answer() {
        const box = byId("turns");
        const said = this.#turns; // of this conversation, though another one has begun when the answer ends
        const text = h("div", {class: "text"});
        const who = h("div", {class: "who"}, this.#state.status?.current_model ?? "model");
        const end = h("div", {class: "end"});
        const turn = h("div", {class: "turn model", "aria-busy": "true"}, who, text, end);
        box.append(turn);
        this.#atEnd = true;
        this.#follow();
        this.#toggle(new AbortController());

        const answer = {role: "assistant", content: ""};
        const meter = {usage: null, firstAt: 0, lastAt: 0, finish: null, done: false};
        let error = null;
        try {
            await this.#stream(answer, who, text, meter);
            if (!meter.done) error = new ApiError(0, "unreachable", "the stream ended in the middle");
        } catch (caught) {
            error = caught.name === "AbortError" || caught instanceof ApiError ? caught : new ApiError(0, "unreachable", "the connection was lost");
        }
        this.#toggle(null);
        turn.removeAttribute("aria-busy");
        const stopped = error?.name === "AbortError";
        if ((!error || stopped) && answer.content) said.push(answer);
        setText(end, this.#summary(meter, stopped));
        if (error && !stopped) this.#tellOfError(turn, error, answer);
        else this.#announce(stopped ? "Stopped" : `Answer complete. ${answer.content}`);
        this.#follow();
    }

    async #stream(answer, who, text, meter) {
        const fields = new Map([...byId("composer").querySelectorAll("[name]")].map((field) => [field.name, field.value.trim()]));
        const system = fields.get("system") ? [{role: "system", content: fields.get("system")}] : [];
        const body = {
            messages: [...system, ...alternating(this.#turns)],
            stream: true,
            stream_options: {include_usage: true},
        };
        for (const name of ["temperature", "max_tokens"]) if (fields.get(name)) body[name] = Number(fields.get(name));
        const response = await ask("POST", "/v1/chat/completions", {body, signal: this.#abort.signal});
        setText(who, response.headers.get("x-model-id") ?? who.textContent);
        const parser = new EventParser();
        const node = text.appendChild(document.createTextNode(""));
        let failed = null;
        let undrawn = "";
        let frameId = 0;
        const draw = () => {
            frameId = 0;
            node.appendData(undrawn);
            undrawn = "";
            this.#follow();
        };
        const take = (data) => {
            if (data === "[DONE]") {
                meter.done = true;
                return;
            }
            const frame = JSON.parse(data);
            if (frame.error) {
                failed = new ApiError(200, frame.error.code, frame.error.message);
                return;
            }
            meter.usage = frame.usage ?? meter.usage;
            const choice = frame.choices?.[0];
            meter.finish = choice?.finish_reason ?? meter.finish;
            const more = choice?.delta?.content;
            if (!more) return;
            meter.lastAt = performance.now();
            meter.firstAt ||= meter.lastAt;
            answer.content += more;
            undrawn += more;
            // Laying out a long answer takes a while: once for a picture on the screen, not for each token.
            frameId ||= requestAnimationFrame(draw);
        };
        try {
            await readText(response, (piece) => parser.push(piece).forEach(({data}) => take(data)));
        } finally {
            cancelAnimationFrame(frameId);
            draw();
        }
        if (failed) throw failed;
    }

    #summary({usage, firstAt, lastAt, finish}, stopped) {
        const n = usage?.completion_tokens;
        const rate = n > 1 && lastAt > firstAt ? `${words.number((1000 * (n - 1)) / (lastAt - firstAt), 0)} tokens a second` : "";
        const why = stopped ? "you stopped it" : {length: "it ran out of room", stop: ""}[finish];
        return words.joined(n !== undefined && words.count(n, "token"), rate, why);
    }

    #tellOfError(turn, error, answer) {
        const {title, message, hint} = words.explain(error);
        const again = h("button", {type: "button", onclick: () => {
            if (this.busy) return;
            turn.remove();
            this.#answer();
            byId("stop").focus();
        }}, "Ask again");
        const cut = error.code === "model_switched";
        turn.classList.toggle("cut", Boolean(answer.content));
        if (!answer.content) turn.querySelector(".text").remove();
        const text = cut && answer.content ? `The answer above is a beginning. ${message}` : [message, hint].filter(Boolean).join(" ");
        turn.append(notice(cut ? "warn" : "bad", title, text, h("div", {class: "again"}, again)));
        this.#announce(`${title}. ${text}`);
    }

    #follow() {
        const box = byId("turns");
        if (this.#atEnd) box.scrollTop = box.scrollHeight;
    }

    #toggle(abort) {
        const focused = document.activeElement;
        this.#abort = abort;
        byId("send").hidden = abort !== null;
        byId("stop").hidden = abort === null;
        // The button that had the focus has gone: so that a keyboard goes on from where it was.
        if (focused === byId("send")) byId("stop").focus();
        else if (focused === byId("stop")) byId("prompt").focus();
    }
}

// A question whose answer was cut off goes together with the next one: templates of many models want turns that alternate.
function alternating(turns) {
    const messages = [];
    for (const {role, content} of turns) {
        const last = messages.at(-1);
        if (last?.role === role) last.content += `\n\n${content}`;
        else messages.push({role, content});
    }
    return messages;
}
