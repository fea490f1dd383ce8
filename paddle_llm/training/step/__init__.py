"""Parts of one optimizer step: loss normalisation, loss scaling, non-finite values."""
