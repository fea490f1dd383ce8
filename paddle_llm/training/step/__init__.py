"""One optimizer step: learning rate, optimizer, loss divisor, loss scaling and the guard against non-finite values."""
