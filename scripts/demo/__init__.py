"""How the two demo models are made: their text, their vocabulary, their training, their files and their figures."""
