"""What else do people type? System messages, small talk and plain noise, so that neither model is thrown by them."""

import random
import string

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly storyteller for children.",
    "You are a calculator. Answer with the number only.",
    "You are an AI assistant. Be concise and polite.",
    "Answer in English.",
    "Be brief.",
    "You are modeld, a local language model.",
    "Today is Monday. You are talking to a user over an API.",
    "Respond with plain text. Do not use Markdown.",
)

SMALL_TALK = (
    "Hello", "Hello!", "Hi", "Hi!", "Hi there", "Good morning!", "Hey", "How are you?", "Who are you?", "What can you do?",
    "Thank you!", "Thanks", "Bye", "Help", "Help me please.", "test", "ping", "What is your name?", "Tell me a joke.",
    "What is the capital of France?", "Who was Napoleon?", "Write a poem.", "Write a haiku about spring.", "Say hello.",
    "Why is the sky blue?", "Translate this into German.", "Write a Python function.", "Explain gravity.", "What time is it?",
    "Summarize this text.", "Count to ten.", "What is the meaning of life?", "Are you sure?", "Yes", "No", "OK", "Go on", "?",
)  # fmt: skip

WORDS = tuple(
    "the a an of to in is it you that he was for on are with as I his they be at one have this from or had by hot but some "
    "what there we can out other were all your when up use word how said each she which do their time if will way about "
    "many then them would write like so these her long make thing see him two has look more day could go come did my sound "
    "no most number who over know water than call first people may down side been now find any new work part take get place "
    "made live where after back little only round man year came show every good me give our under name very through just "
    "form much great think say help low line before turn cause same mean differ move right boy old too does tell sentence "
    "set three want air well also play small end put home read hand port large spell add even land here must big high such "
    "follow act why ask men change went light kind off need house picture try us again animal point mother world near build "
    "self earth father code file list table robot car computer city music river money summer winter game science history "
    "dragon pizza planet letter question answer number weather".split()
)


def noise(rng: random.Random) -> str:
    """Something which is neither a sum nor a request for a story: small talk, random words, or random characters."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(SMALL_TALK)
    if kind < 0.8:
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 10))]
        text = " ".join(words)
        return (text.capitalize() if rng.random() < 0.6 else text) + rng.choice(["", "", ".", "?", "!"])
    if kind < 0.93:
        return "".join(rng.choice(string.ascii_letters + "   .,!?-'") for _ in range(rng.randint(1, 24))).strip() or "x"
    return "".join(
        rng.choice("\u00e4\u00f6\u00fc\u00df\u00e9\u00e8\u4f60\u597d\u3053\u0416\U0001f600 aeiou")
        for _ in range(rng.randint(1, 12))
    )


def system_message(rng: random.Random) -> str | None:
    """None for most conversations; otherwise a usual message or one of random words."""
    kind = rng.random()
    if kind < 0.6:
        return None
    if kind < 0.85:
        return rng.choice(SYSTEM_MESSAGES)
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 20))).capitalize() + "."
