"""With which sizes, texts and steps is each demo model trained? One recipe a model; change a figure here, nowhere else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import sums, tales
from .chat import Document
from .network import Shape
from .tokenizer import Vocabulary, build_vocabulary


@dataclass(frozen=True, slots=True)
class Phase:
    """steps batches of rows x length tokens."""

    steps: int
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a training run produces."""

    name: str
    title: str
    description: str
    seed: int
    vocabulary: Callable[[], Vocabulary]
    documents: Callable[[int], Iterator[Document]]
    repeated: Callable[[], frozenset[int]]  # tokens whose repetition counts more (batches.Encoder)
    shape: Callable[[int], Shape]  # from the vocabulary's size
    phases: tuple[Phase, ...]
    learning_rate: float


CALC = Recipe(
    name="demo-calc",
    title="modeld demo calc",
    description="Answers sums of two numbers from 0 to 99.",
    seed=1,
    vocabulary=build_vocabulary,
    documents=sums.documents,
    repeated=frozenset,
    shape=lambda size: Shape(vocabulary=size, context=512, width=192, layers=4, heads=6, hidden=384),
    # Short rows first: documents longer than a row are left out, so that most of them are plain sums, and steps are cheap.
    phases=(Phase(1400, rows=24, length=64), Phase(350, rows=16, length=256), Phase(80, rows=8, length=512)),
    learning_rate=2e-3,
)

STORIES = Recipe(
    name="demo-stories",
    title="modeld demo stories",
    description="Tells short stories about animals in simple English.",
    seed=2,
    vocabulary=tales.vocabulary,
    documents=tales.documents,
    repeated=tales.subject_tokens,
    shape=lambda size: Shape(vocabulary=size, context=1024, width=192, layers=4, heads=6, hidden=512),
    phases=(Phase(1800, rows=16, length=128), Phase(300, rows=8, length=512), Phase(50, rows=4, length=1024)),
    learning_rate=2e-3,
)

RECIPES = {recipe.name: recipe for recipe in (CALC, STORIES)}
