"""What must a sound libllama compute? Writes models/selftest.json: a prompt, and the logits that PyTorch gets for it.

`python -m scripts.demo.selftest --model models/demo-calc.gguf --out models/selftest.json`. The weights are those of the
GGUF file, dequantized; everything after that is float32 PyTorch, so nothing of llama.cpp's takes part in the reference.
"""

import argparse
import json
from pathlib import Path

import torch

from .export import read_gguf
from .tokenizer import BOS, build_vocabulary

PROMPT = "12+30=42\n7+8=15\n64+19=83\n48+37="
# Three times what libllama was measured to differ by (models/README.md): it multiplies quantized activations, so it cannot be
# exact. A layer that computes something else moves a logit by more than 2.
MAX_ABS_DIFF = 0.5


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tokens = [BOS, *build_vocabulary().encode(PROMPT)]
    logits = reference_logits(arguments.model, tokens)
    reference = {
        "model": arguments.model.name,
        "tokens": tokens,
        "logits": [round(value, 5) for value in logits],
        "max_abs_diff": MAX_ABS_DIFF,
    }
    arguments.out.write_text(json.dumps(reference) + "\n")


def reference_logits(path: Path, tokens: list[int]) -> list[float]:
    """Logits [vocabulary] after the last of tokens."""
    model = read_gguf(path)
    length = len(tokens)
    with torch.no_grad():
        causal = torch.ones(1, length, length, dtype=torch.bool).tril()
        hidden = model(torch.tensor([tokens]), torch.arange(length)[None], causal)
        values: list[float] = model.logits(hidden[:, -1])[0].tolist()
    return values


if __name__ == "__main__":
    main()
