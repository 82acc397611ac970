"""What is handed over, and how is it made? `python -m scripts.dist` (make dist) fills dist/; one module for each thing."""
