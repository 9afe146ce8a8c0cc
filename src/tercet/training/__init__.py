"""Around the training loop: loader, memory, gradient cache, ranks, models, monitor."""
