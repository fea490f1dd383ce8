"""Build networks of PaddleNLP, read and name their weights, compute their loss."""
