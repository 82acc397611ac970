// What if the page does not arrive whole? It says so and asks for itself again: the daemon may be starting, or a proxy has lost it.
// No module, so that it runs where one of them is missing.

let isComingAgain = false;

addEventListener("error", ({target}) => {
    const matters = target instanceof HTMLScriptElement || (target instanceof HTMLLinkElement && target.rel === "stylesheet");
    if (!matters || isComingAgain) return;
    isComingAgain = true;
    const words = document.getElementById("link-words");
    if (words) words.textContent = "The page did not arrive whole. Trying again";
    const tries = history.state?.tries ?? 0; // outlives a reload; page.js clears it
    history.replaceState({tries: tries + 1}, "");
    setTimeout(() => location.reload(), Math.min(60_000, 2000 * 2 ** tries) * (0.7 + 0.3 * Math.random()));
}, true);
