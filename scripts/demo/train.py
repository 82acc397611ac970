"""How is a demo model made? `python -m scripts.demo.train --model demo-calc --out models/` trains it and writes its GGUF.

PyTorch on the CPU, minutes on two cores, deterministic by the recipe's seed (on one machine with the same thread count).
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from .batches import Batch, Encoder, batches
from .export import write_gguf
from .network import Llama
from .recipes import RECIPES, Recipe
from .tokenizer import Vocabulary

WARMUP_STEPS = 100


def main() -> None:
    """Train, export, and keep the float weights where --checkpoint says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the GGUF file")
    parser.add_argument("--checkpoint", type=Path, help="file for the float32 weights, rewritten every 200 steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.model]
    vocabulary = recipe.vocabulary()
    model = train(recipe, vocabulary, arguments.checkpoint)
    path = arguments.out / f"{recipe.name}.gguf"
    write_gguf(path, model, vocabulary, recipe)
    print(f"{path}: {path.stat().st_size} bytes, {sum(p.numel() for p in model.parameters())} parameters")


def train(recipe: Recipe, vocabulary: Vocabulary, checkpoint: Path | None) -> Llama:
    """The trained model. Matrices are multiplied in bfloat16; weights, norms and the loss stay in float32."""
    torch.manual_seed(recipe.seed)
    model = Llama(recipe.shape(len(vocabulary.pieces)))
    optimizers = _optimizers(model)
    total = sum(phase.steps for phase in recipe.phases)
    started = time.monotonic()
    running = 0.0
    for step, batch in enumerate(_all_batches(recipe, vocabulary)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, total)
        model.zero_grad(set_to_none=True)
        loss = _loss(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        running += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{total}  loss {running / 50:.4f}  {time.monotonic() - started:.0f} s", flush=True)
            running = 0.0
        if checkpoint is not None and (step + 1) % 200 == 0:
            torch.save(model.state_dict(), checkpoint)
    if checkpoint is not None:
        torch.save(model.state_dict(), checkpoint)
    return model


def _optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, which learns to copy names and things in far fewer steps, AdamW for the rest."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    others = [model.embedding.weight, *(p for p in model.parameters() if p.dim() == 1)]
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)]


def _all_batches(recipe: Recipe, vocabulary: Vocabulary) -> Iterator[Batch]:
    """The phases one after another, on one stream of documents."""
    documents = recipe.documents(recipe.seed)
    encoder = Encoder(vocabulary, recipe.repeated())
    for phase in recipe.phases:
        source = batches(documents, encoder, phase.rows, phase.length)
        for _ in range(phase.steps):
            yield next(source)


def _schedule(step: int, total: int) -> float:
    """Warm-up, then a cosine down to a twentieth."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (total - WARMUP_STEPS)))


def _loss(model: Llama, batch: Batch) -> torch.Tensor:
    """Weighted mean of the cross-entropies of the tokens to be learnt."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(batch.tokens, batch.positions, batch.mask)
        learnt = batch.weights > 0
        logits = model.logits(hidden[learnt])
    losses = F.cross_entropy(logits.float(), batch.targets[learnt], reduction="none")
    return (losses * batch.weights[learnt]).sum() / batch.weights.sum()


if __name__ == "__main__":
    main()
