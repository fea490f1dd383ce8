"""The training state of a network and its optimizer as checkpoints contain it: collected from ranks and set on ranks of any layout."""
