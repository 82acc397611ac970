// How does text get into the page? As text: nothing here, and nothing else on the page, makes markup of it.

export const byId = (id) => document.getElementById(id);

// h("p", {class: "hint", hidden: true, onclick}, "text", node): an element. Attributes that are false or null are left out.
export function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) {
            element.addEventListener(name.slice(2), value);
        } else if (value !== null && value !== undefined && value !== false) {
            element.setAttribute(name, value === true ? "" : value);
        }
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
}

// One of the symbols of index.html. What it says stands beside it in words.
export const icon = (name) => svg("svg", {class: "icon", "aria-hidden": "true"}, svg("use", {href: `#i-${name}`}));

// Only what has changed is written: a reader of the screen is told of nothing twice, and a selection stays.
export function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

export function setIcon(holder, name) {
    const use = holder.querySelector("use");
    if (use.getAttribute("href") !== `#i-${name}`) use.setAttribute("href", `#i-${name}`);
}

// What goes away, or can be pressed no longer, gives the focus to the part that it stands in: a keyboard goes on from there.
export function setHidden(element, hidden) {
    if (hidden) handOver(element);
    element.hidden = hidden;
}

export function setDisabled(element, disabled) {
    if (disabled) handOver(element);
    element.disabled = disabled;
}

export function handOver(element) {
    if (element.contains(document.activeElement)) element.parentElement.closest("[tabindex]").focus({preventScroll: true});
}

// A message in its own box: kind is bad, warn, ok or info.
export function notice(kind, title, text, ...more) {
    const symbol = {bad: "error", warn: "error", ok: "ready", info: "none"}[kind];
    const words = text ? h("span", {}, text) : null;
    return h("div", {class: `notice ${kind}`}, icon(symbol), h("div", {}, h("strong", {}, title), words, ...more));
}
