// Light or dark? As the system has it, unless this button says otherwise.

import {byId, setText} from "./dom.js";
import {Kept} from "./kept.js";

const NAME = "modeld.theme";
const NEXT = {auto: "light", light: "dark", dark: "auto"};
const WORDS = {auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark"};

export function startTheme() {
    const kept = new Kept(() => localStorage);
    let theme = kept.get(NAME);
    if (!Object.hasOwn(NEXT, theme)) theme = "auto";
    show(theme);
    byId("theme").addEventListener("click", () => {
        theme = NEXT[theme];
        kept.set(NAME, theme);
        show(theme);
    });
}

function show(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setText(byId("theme-words"), WORDS[theme]);
}
